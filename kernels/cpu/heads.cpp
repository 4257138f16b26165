// `mmsada::adaptation_heads`: all heads of a step as one operator with one for its backward.
//
// Differentiable by features and parameters through the losses; accuracies and logits are not, and there are no second
// derivatives.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "heads_backward.h"

namespace mmsada::heads {
namespace {

using at::Tensor;
using at::TensorList;
using Tensors = std::vector<Tensor>;

// Checks what the pointers below rely on.
void check(const Tensor& x, at::IntArrayRef sizes, at::ScalarType type, const char* name) {
  TORCH_CHECK(x.sizes() == sizes && x.scalar_type() == type, "adaptation_heads: ", name, " must be ", type,
              " of shape ", sizes, ", got ", x.scalar_type(), " ", x.sizes());
}

// Tensors as the passes take them, kept alive here.
struct Inputs {
  Tensors kept;
  Shape shape;

  Inputs(TensorList features, TensorList dropout, TensorList classifier, TensorList discriminator,
         TensorList correspondence, int64_t num_classes) {
    const int64_t S = std::ssize(features);
    TORCH_CHECK(S > 0 && features[0].dim() == 2 && std::ssize(dropout) == S && std::ssize(classifier) == 2 * S &&
                    std::ssize(discriminator) == 4 * S && correspondence.size() == 4 && classifier[0].dim() == 2,
                "adaptation_heads: expected for each stream features (N, D), dropout, 2 tensors of a classifier and 4 of "
                "a discriminator, and 4 of the correspondence head");
    shape.clips = features[0].size(0);
    shape.logits = classifier[0].size(0);
    shape.classes = num_classes;
    TORCH_CHECK(0 < num_classes && num_classes <= shape.logits, "adaptation_heads: num_classes ", num_classes, " of ",
                shape.logits, " logits");
    int64_t offset = 0;
    for (int64_t s = 0; s < S; ++s) {
      TORCH_CHECK(features[s].dim() == 2, "adaptation_heads: features must be (N, D)");
      const int64_t D = features[s].size(1);
      TORCH_CHECK(features[s].size(0) == shape.clips && dropout[s].sizes() == features[s].sizes(),
                  "adaptation_heads: features and dropout of stream ", s, " must be (N, D) with N = ", shape.clips);
      shape.streams.push_back({D, offset, keep(dropout[s].to(at::kFloat)),
                               parameter(classifier[2 * s], {shape.logits, D}, "classifier weight"),
                               parameter(classifier[2 * s + 1], {shape.logits}, "classifier bias")});
      shape.pairs.push_back(pair(discriminator.slice(4 * s, 4), D, "discriminator"));
      offset += D;
    }
    shape.pairs.push_back(pair(correspondence, offset, "correspondence head"));
  }

  const float* keep(const Tensor& x) {
    kept.push_back(x.contiguous());
    return kept.back().const_data_ptr<float>();
  }

 private:
  const float* parameter(const Tensor& x, at::IntArrayRef sizes, const char* name) {
    check(x, sizes, at::kFloat, name);
    return keep(x);
  }

  Pair pair(TensorList x, int64_t inputs, const char* name) {
    const int64_t H = x[0].size(0);
    return {parameter(x[0], {H, inputs}, name), parameter(x[1], {H}, name), parameter(x[2], {2, H}, name),
            parameter(x[3], {2}, name), H, inputs};
  }
};

template <typename T>
std::vector<const T*> pointers(TensorList tensors, Tensors& kept) {
  std::vector<const T*> found;
  for (const Tensor& x : tensors) {
    kept.push_back(x.contiguous());
    found.push_back(kept.back().const_data_ptr<T>());
  }
  return found;
}

// Calls `body(P, X)`: how products are taken, and the type of the features.
template <typename Body>
void dispatch(TensorList features, at::ScalarType products, const Body& body) {
  const at::ScalarType type = features[0].scalar_type();
  for (const Tensor& x : features) TORCH_CHECK(x.scalar_type() == type, "adaptation_heads: features of several types");
  if (products == at::kFloat && type == at::kFloat) {
    body(Single{}, float{});
  } else if (products == at::kBFloat16 && type == at::kFloat) {
    body(Half{}, float{});
  } else if (products == at::kBFloat16 && type == at::kBFloat16) {
    body(Half{}, c10::BFloat16{});
  } else {
    TORCH_CHECK(false, "adaptation_heads: no ", products, " products of ", type, " features");
  }
}

// Shapes of what the forward keeps for the backward: for every pair its rows, pairs and small slopes, then the slopes of
// logits and of the classifier's bias. Also what the fake kernel answers with, so in symbolic sizes.
Tensors make_slopes(TensorList features, TensorList classifier, TensorList discriminator, TensorList correspondence,
                    at::ScalarType products) {
  const c10::SymInt N = features[0].sym_size(0), K = classifier[0].sym_size(0);
  const int64_t pack = products == at::kBFloat16 ? 2 : 1;
  const auto wide = features[0].options().dtype(at::kFloat), narrow = wide.dtype(products);
  Tensors found;
  for (int64_t p = 0; p <= std::ssize(features); ++p) {
    const Tensor& weight1 = p < std::ssize(features) ? discriminator[4 * p] : correspondence[0];
    const c10::SymInt H = weight1.sym_size(0);
    found.push_back(at::empty_symint({N, (H + (pack - 1)) / pack * pack}, narrow));
    found.push_back(at::empty_symint({pack == 2 ? (N + 1) / 2 : c10::SymInt(0), H, 2}, narrow));
    found.push_back(at::empty_symint({H * 3 + 2}, wide));
  }
  found.push_back(at::empty_symint({N, K}, wide));
  found.push_back(at::empty_symint({K}, wide));
  return found;
}

template <typename P>
std::vector<Slopes<P>> slopes_of(TensorList kept, int64_t pairs) {
  using Value = typename P::Value;
  std::vector<Slopes<P>> found;
  for (int64_t p = 0; p < pairs; ++p) {
    found.push_back({kept[3 * p].mutable_data_ptr<Value>(), kept[3 * p + 1].mutable_data_ptr<Value>(),
                     kept[3 * p + 2].mutable_data_ptr<float>()});
  }
  return found;
}

struct Targets {
  Tensor label, domain, corresponds, ce, corr, domain_weight;

  Targets(const Shape& shape, const Tensor& label_N, const Tensor& domain_N, const Tensor& corresponds_N,
          const Tensor& weight_ce_N, const Tensor& weight_corr_N, const Tensor& weight_domain_N)
      : label(label_N.to(at::kLong).contiguous()), domain(domain_N.to(at::kLong).contiguous()),
        corresponds(corresponds_N.to(at::kLong).contiguous()), ce(weight_ce_N.to(at::kDouble).contiguous()),
        corr(weight_corr_N.to(at::kDouble).contiguous()), domain_weight(weight_domain_N.to(at::kDouble).contiguous()) {
    for (const Tensor* x : {&label, &domain, &corresponds, &ce, &corr, &domain_weight}) {
      TORCH_CHECK(x->dim() == 1 && x->size(0) == shape.clips, "adaptation_heads: labels and weights must be (N,) with N = ",
                  shape.clips);
    }
    within(label, shape.classes, "label_N");
    within(domain, 2, "domain_N");
  }

 private:
  static void within(const Tensor& labels, int64_t classes, const char* name) {
    const int64_t* at = labels.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < labels.numel(); ++n) {
      TORCH_CHECK_INDEX(at[n] == kIgnored || (0 <= at[n] && at[n] < classes), "adaptation_heads: ", name, "[", n, "] is ",
                        at[n], ", expected 0 to ", classes - 1);
    }
  }
};

// losses, accuracies, logits, and what the backward needs.
std::tuple<Tensor, Tensor, Tensor, Tensors> forward(
    TensorList features, TensorList dropout, TensorList classifier, TensorList discriminator, TensorList correspondence,
    const Tensor& label, const Tensor& domain, const Tensor& corresponds, const Tensor& weight_ce,
    const Tensor& weight_corr, const Tensor& weight_domain, int64_t num_classes, at::ScalarType products) {
  Inputs inputs(features, dropout, classifier, discriminator, correspondence, num_classes);
  const Shape& shape = inputs.shape;
  const Targets targets(shape, label, domain, corresponds, weight_ce, weight_corr, weight_domain);
  const int64_t N = shape.clips, S = std::ssize(shape.streams);
  const auto wide = features[0].options().dtype(at::kFloat);
  Tensor losses = at::empty({2 + S}, wide), accuracies = at::empty({2 + S}, wide);
  Tensor logits = at::empty({N, shape.logits}, wide);
  Tensors kept = make_slopes(features, classifier, discriminator, correspondence, products);
  dispatch(features, products, [&](auto P_, auto X_) {
    using P = decltype(P_);
    using X = decltype(X_);
    Tensors alive;
    std::vector<float*> projected;
    for (int64_t s = 0; s < S; ++s) {
      alive.push_back(at::empty({N, shape.hidden(s)}, wide));
      projected.push_back(alive.back().template mutable_data_ptr<float>());
    }
    Tensors narrow;
    for (const Tensor& x : features) narrow.push_back(x.to(products));
    project<P>(shape, pointers<typename P::Value>(narrow, alive), projected);
    classify(shape, pointers<X>(features, alive), logits.mutable_data_ptr<float>());
    const auto slopes = slopes_of<P>(kept, S + 1);
    float *loss = losses.mutable_data_ptr<float>(), *accuracy = accuracies.mutable_data_ptr<float>();
    at::parallel_for(0, S + 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t term = begin; term < end; ++term) {
        Scored scored;
        if (term == 0) {
          scored = score_classes(shape, logits.const_data_ptr<float>(), targets.label.const_data_ptr<int64_t>(),
                                 targets.ce.const_data_ptr<double>(), kept[3 * S + 3].mutable_data_ptr<float>(),
                                 kept[3 * S + 4].mutable_data_ptr<float>());
        } else {
          const int64_t pair = term == 1 ? S : term - 2;
          std::vector<std::pair<const float*, int64_t>> parts;
          for (int64_t s = 0; s < S; ++s) {
            if (pair == S) parts.emplace_back(projected[s] + shape.pairs[s].hidden, shape.hidden(s));
          }
          if (pair < S) parts.emplace_back(projected[pair], shape.hidden(pair));
          const Tensor& label = term == 1 ? targets.corresponds : targets.domain;
          const Tensor& weight = term == 1 ? targets.corr : targets.domain_weight;
          scored = score_pair<P>(shape.pairs[pair], N, parts, label.const_data_ptr<int64_t>(),
                                 weight.const_data_ptr<double>(), slopes[pair]);
        }
        loss[term] = static_cast<float>(scored.loss);
        accuracy[term] = static_cast<float>(scored.right);
      }
    });
  });
  return {losses, accuracies, logits, kept};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> forward_fake(
    TensorList features, TensorList, TensorList classifier, TensorList discriminator, TensorList correspondence,
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t,
    at::ScalarType products) {
  const auto wide = features[0].options().dtype(at::kFloat);
  const c10::SymInt terms = 2 + std::ssize(features);
  return {at::empty_symint({terms}, wide), at::empty_symint({terms}, wide),
          at::empty_symint({features[0].sym_size(0), classifier[0].sym_size(0)}, wide),
          make_slopes(features, classifier, discriminator, correspondence, products)};
}

// Gradients of features, where wanted, then of all parameters in their order, where wanted.
Tensors backward_fake(const Tensor&, TensorList features, TensorList, TensorList classifier, TensorList discriminator,
                      TensorList correspondence, TensorList, const Tensor&, bool by_features, bool by_parameters,
                      at::ScalarType) {
  Tensors found;
  const auto add = [&](TensorList like) {
    for (const Tensor& x : like) found.push_back(at::empty_symint(x.sym_sizes(), x.options()));
  };
  if (by_features) add(features);
  if (by_parameters) {
    add(classifier);
    add(discriminator);
    add(correspondence);
  }
  return found;
}

void scale_into(const float* from, float scale, Tensor& to) {
  float* at = to.mutable_data_ptr<float>();
  for (int64_t i = 0; i < to.numel(); ++i) at[i] = from[i] * scale;
}

Tensors backward(const Tensor& grad_losses, TensorList features, TensorList dropout, TensorList classifier,
                 TensorList discriminator, TensorList correspondence, TensorList slopes, const Tensor& reversal,
                 bool by_features, bool by_parameters, at::ScalarType products) {
  Inputs inputs(features, dropout, classifier, discriminator, correspondence, classifier[0].size(0));
  const Shape& shape = inputs.shape;
  const int64_t S = std::ssize(shape.streams);
  check(grad_losses, {2 + S}, at::kFloat, "grad_losses");
  const float* grad = inputs.keep(grad_losses);
  const Scales scales{grad[0], grad[1], {grad + 2, grad + 2 + S}, *inputs.keep(reversal.to(at::kFloat))};
  Tensors found = backward_fake(grad_losses, features, dropout, classifier, discriminator, correspondence, slopes,
                                reversal, by_features, by_parameters, products);
  Tensor* parameters = found.data() + (by_features ? S : 0);  // 2 S of classifiers, then 4 of each pair
  dispatch(features, products, [&](auto P_, auto X_) {
    using P = decltype(P_);
    using X = decltype(X_);
    Gradients<X> to;
    for (int64_t s = 0; by_features && s < S; ++s) to.features.push_back(found[s].template mutable_data_ptr<X>());
    for (int64_t s = 0; by_parameters && s < S; ++s) {
      to.classifier.push_back(parameters[2 * s].template mutable_data_ptr<float>());
    }
    for (int64_t p = 0; by_parameters && p <= S; ++p) {
      to.weight1.push_back(parameters[2 * S + 4 * p].template mutable_data_ptr<float>());
    }
    const Kept<P> kept{slopes_of<P>(slopes, S + 1), slopes[3 * S + 3].const_data_ptr<float>()};
    Tensors alive;
    differentiate<P, X>(shape, pointers<X>(features, alive), kept, scales, to);
  });
  if (by_parameters) {
    for (int64_t s = 0; s < S; ++s) {
      scale_into(slopes[3 * S + 4].const_data_ptr<float>(), scales.classified, parameters[2 * s + 1]);
    }
    for (int64_t p = 0; p <= S; ++p) {
      const float scale = p < S ? scales.domain[p] : scales.joint;
      const float* small = slopes[3 * p + 2].const_data_ptr<float>();
      for (int64_t i = 1; i < 4; ++i) {
        Tensor& to = parameters[2 * S + 4 * p + i];
        scale_into(small, scale, to);
        small += to.numel();
      }
    }
  }
  return found;
}

const auto& forward_operator() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mmsada::adaptation_heads_forward", "")
                             .typed<decltype(forward)>();
  return op;
}

const auto& backward_operator() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mmsada::adaptation_heads_backward", "")
                             .typed<decltype(backward)>();
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
           "adaptation_heads_forward(" + tensors + targets + "int num_classes, ScalarType product_dtype) -> " + results +
               ", Tensor[] slopes)",
           "adaptation_heads_backward(Tensor grad_losses_T, " + tensors +
               "Tensor[] slopes, Tensor reversal, bool by_features, bool by_parameters, ScalarType product_dtype) -> "
               "Tensor[]",
       }) {
    m.def(schema.c_str());
  }
}

TORCH_LIBRARY_IMPL(mmsada, CPU, m) {
  m.impl("adaptation_heads_forward", forward);
  m.impl("adaptation_heads_backward", backward);
}

TORCH_LIBRARY_IMPL(mmsada, Meta, m) {
  m.impl("adaptation_heads_forward", forward_fake);
  m.impl("adaptation_heads_backward", backward_fake);
}

TORCH_LIBRARY_IMPL(mmsada, CompositeExplicitAutograd, m) { m.impl("adaptation_heads", plain); }

TORCH_LIBRARY_IMPL(mmsada, Autograd, m) {
  m.impl("adaptation_heads", differentiable);
  m.impl("adaptation_heads_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("adaptation_heads_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace mmsada::heads
