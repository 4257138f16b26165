// The forward and the backward of the adaptation heads on a CPU, and what tracing sees of them (`heads_autograd.cpp`
// makes one differentiable operator of the two).

#include <torch/library.h>

#include "heads_tensors.h"

namespace mmsada::heads {
namespace {

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
    FirstLayers<P, X>(shape, pointers<typename P::Value>(narrow, alive), pointers<X>(features, alive), projected,
                      logits.mutable_data_ptr<float>())
        .run();
    const auto slopes = slopes_of<P>(kept, S + 1);
    float *loss = losses.mutable_data_ptr<float>(), *accuracy = accuracies.mutable_data_ptr<float>();
    const int64_t grain = N > 64 ? 1 : S + 2;  // few clips take less time than waking another thread
    at::parallel_for(0, S + 2, grain, [&](int64_t begin, int64_t end) {
      for (int64_t term = begin; term < end; ++term) {
        Scored scored;
        if (term == 0) {
          scored = score_classes(shape, logits.const_data_ptr<float>(), targets.label.data(),
                                 targets.ce.data(), kept[3 * S + 3].mutable_data_ptr<float>(),
                                 kept[3 * S + 4].mutable_data_ptr<float>());
        } else {
          const int64_t pair = term == 1 ? S : term - 2;
          std::vector<std::pair<const float*, int64_t>> parts;
          for (int64_t s = 0; s < S; ++s) {
            if (pair == S) parts.emplace_back(projected[s] + shape.pairs[s].hidden, shape.hidden(s));
          }
          if (pair < S) parts.emplace_back(projected[pair], shape.hidden(pair));
          const auto& label = term == 1 ? targets.corresponds : targets.domain;
          const auto& weight = term == 1 ? targets.corr : targets.domain_weight;
          scored = score_pair<P>(shape.pairs[pair], N, parts, label.data(), weight.data(), slopes[pair]);
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

}  // namespace

TORCH_LIBRARY_IMPL(mmsada, CPU, m) {
  m.impl("adaptation_heads_forward", forward);
  m.impl("adaptation_heads_backward", backward);
}

TORCH_LIBRARY_IMPL(mmsada, Meta, m) {
  m.impl("adaptation_heads_forward", forward_fake);
  m.impl("adaptation_heads_backward", backward_fake);
}

}  // namespace mmsada::heads
