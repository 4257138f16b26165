// `mmsada::adaptation_heads`: all heads of a step as one operator, with one for its backward.
//
// Differentiable by features and parameters through the losses; accuracies and logits are not, and there are no second
// derivatives.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace mmsada::heads {
namespace {

using at::Tensor;
using at::TensorList;
using Tensors = std::vector<Tensor>;

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensors>(
    TensorList features, TensorList dropout, TensorList classifier, TensorList discriminator, TensorList correspondence,
    const Tensor& label, const Tensor& domain, const Tensor& corresponds, const Tensor& weight_ce,
    const Tensor& weight_corr, const Tensor& weight_domain, int64_t num_classes, at::ScalarType products);
using Backward = Tensors(const Tensor& grad_losses, TensorList features, TensorList dropout, TensorList classifier,
                         TensorList discriminator, TensorList correspondence, TensorList slopes, const Tensor& reversal,
                         bool by_features, bool by_parameters, at::ScalarType products);

const auto& forward_operator() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mmsada::adaptation_heads_forward", "").typed<Forward>();
  return op;
}

const auto& backward_operator() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mmsada::adaptation_heads_backward", "").typed<Backward>();
  return op;
}

// What is not differentiated.
struct Given {
  TensorList dropout;
  const Tensor &label, &domain, &corresponds, &weight_ce, &weight_corr, &weight_domain, &reversal;
  int64_t num_classes;
  at::ScalarType products;
};

struct Parts {
  TensorList features, classifier, discriminator, correspondence;

  Parts(TensorList all, int64_t S)
      : features(all.slice(0, S)), classifier(all.slice(S, 2 * S)), discriminator(all.slice(3 * S, 4 * S)),
        correspondence(all.slice(7 * S, 4)) {}
};

class Heads : public torch::autograd::Function<Heads> {
 public:
  // `all`: features, classifier, discriminator, correspondence.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList all,
                                                const Given& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const int64_t S = std::ssize(given.dropout);
    const Parts parts(all, S);
    auto [losses, accuracies, logits, slopes] = forward_operator().call(
        parts.features, given.dropout, parts.classifier, parts.discriminator, parts.correspondence, given.label,
        given.domain, given.corresponds, given.weight_ce, given.weight_corr, given.weight_domain, given.num_classes,
        given.products);
    Tensors kept(all.begin(), all.end());
    kept.insert(kept.end(), given.dropout.begin(), given.dropout.end());
    kept.insert(kept.end(), slopes.begin(), slopes.end());
    kept.push_back(given.reversal);
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["streams"] = S;
    ctx->saved_data["products"] = static_cast<int64_t>(given.products);
    ctx->mark_non_differentiable({accuracies, logits});
    ctx->set_materialize_grads(false);
    return {losses, accuracies, logits};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const int64_t S = ctx->saved_data["streams"].toInt(), tensors = 7 * S + 4;
    torch::autograd::variable_list found(tensors + 1);  // the last for `given`
    if (!grads[0].defined()) return found;
    const auto saved = ctx->get_saved_variables();
    const TensorList all(saved);
    const Parts parts(all, S);
    bool by_features = false, by_parameters = false;
    for (int64_t i = 0; i < tensors; ++i) (i < S ? by_features : by_parameters) |= ctx->needs_input_grad(i);
    const auto made = backward_operator().call(
        grads[0], parts.features, all.slice(tensors, S), parts.classifier, parts.discriminator, parts.correspondence,
        all.slice(tensors + S, 3 * S + 5), all.back(), by_features, by_parameters,
        static_cast<at::ScalarType>(ctx->saved_data["products"].toInt()));
    std::copy(made.begin(), made.end(), found.begin() + (by_features ? 0 : S));
    return found;
  }
};

std::tuple<Tensor, Tensor, Tensor> differentiable(
    TensorList features, TensorList dropout, TensorList classifier, TensorList discriminator, TensorList correspondence,
    const Tensor& label, const Tensor& domain, const Tensor& corresponds, const Tensor& weight_ce,
    const Tensor& weight_corr, const Tensor& weight_domain, const Tensor& reversal, int64_t num_classes,
    at::ScalarType products) {
  TORCH_CHECK(reversal.numel() == 1, "adaptation_heads: reversal must be one value, got ", reversal.sizes());
  Tensors all;
  for (TensorList part : {features, classifier, discriminator, correspondence}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  const auto out = Heads::apply(TensorList(all), Given{dropout, label, domain, corresponds, weight_ce, weight_corr,
                                                       weight_domain, reversal, num_classes, products});
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor, Tensor> plain(
    TensorList features, TensorList dropout, TensorList classifier, TensorList discriminator, TensorList correspondence,
    const Tensor& label, const Tensor& domain, const Tensor& corresponds, const Tensor& weight_ce,
    const Tensor& weight_corr, const Tensor& weight_domain, const Tensor&, int64_t num_classes,
    at::ScalarType products) {
  auto [losses, accuracies, logits, slopes] =
      forward_operator().call(features, dropout, classifier, discriminator, correspondence, label, domain, corresponds,
                              weight_ce, weight_corr, weight_domain, num_classes, products);
  return {losses, accuracies, logits};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsada, m) {
  const std::string tensors =
      "Tensor[] features_SND, Tensor[] dropout_SND, Tensor[] classifier, Tensor[] discriminator, "
      "Tensor[] correspondence, ";
  const std::string targets =
      "Tensor label_N, Tensor domain_N, Tensor corresponds_N, Tensor weight_ce_N, Tensor weight_corr_N, "
      "Tensor weight_domain_N, ";
  const std::string results = "(Tensor losses_T, Tensor accuracies_T, Tensor logits_NK";
  for (const std::string& schema : {
           "adaptation_heads(" + tensors + targets + "Tensor reversal, int num_classes, ScalarType product_dtype) -> " +
               results + ")",
           "adaptation_heads_forward(" + tensors + targets + "int num_classes, ScalarType product_dtype) -> " +
               results + ", Tensor[] slopes)",
           "adaptation_heads_backward(Tensor grad_losses_T, " + tensors +
               "Tensor[] slopes, Tensor reversal, bool by_features, bool by_parameters, ScalarType product_dtype) -> "
               "Tensor[]",
       }) {
    m.def(schema.c_str());
  }
}

TORCH_LIBRARY_IMPL(mmsada, CompositeExplicitAutograd, m) { m.impl("adaptation_heads", plain); }

TORCH_LIBRARY_IMPL(mmsada, Autograd, m) {
  m.impl("adaptation_heads", differentiable);
  m.impl("adaptation_heads_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("adaptation_heads_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace mmsada::heads
