// From tensors to the plain memory that the passes of the heads work on, with the checks that they rely on.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "heads_backward.h"

namespace mmsada::heads {

using at::Tensor;
using at::TensorList;
using Tensors = std::vector<Tensor>;

// Checks what the pointers below rely on.
inline void check(const Tensor& x, at::IntArrayRef sizes, at::ScalarType type, const char* name) {
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
                "adaptation_heads: expected for each stream features (N, D), dropout, 2 tensors of a classifier and 4 "
                "of a discriminator, and 4 of the correspondence head");
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

// Shapes of what the forward keeps for the backward: for every pair its rows, pairs and small slopes, then the slopes
// of logits and of the classifier's bias. Also what the fake kernel answers with, so in symbolic sizes.
inline Tensors make_slopes(TensorList features, TensorList classifier, TensorList discriminator,
                           TensorList correspondence, at::ScalarType products) {
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

// A vector of one type from a tensor of another; a tensor operator for each would take longer than the rest of them.
template <typename To>
std::vector<To> converted(const Tensor& x, int64_t clips, const char* name) {
  TORCH_CHECK(x.dim() == 1 && x.size(0) == clips, "adaptation_heads: ", name, " must be (N,) with N = ", clips,
              ", got ", x.sizes());
  std::vector<To> found(clips);
  const auto from = [&](const auto* at) {
    for (int64_t n = 0; n < clips; ++n) found[n] = static_cast<To>(at[n * x.stride(0)]);
  };
  switch (x.scalar_type()) {
    case at::kBool: from(x.const_data_ptr<bool>()); break;
    case at::kLong: from(x.const_data_ptr<int64_t>()); break;
    case at::kFloat: from(x.const_data_ptr<float>()); break;
    case at::kDouble: from(x.const_data_ptr<double>()); break;
    default: TORCH_CHECK(false, "adaptation_heads: ", name, " is of type ", x.scalar_type());
  }
  return found;
}

struct Targets {
  std::vector<int64_t> label, domain, corresponds;
  std::vector<double> ce, corr, domain_weight;

  Targets(const Shape& shape, const Tensor& label_N, const Tensor& domain_N, const Tensor& corresponds_N,
          const Tensor& weight_ce_N, const Tensor& weight_corr_N, const Tensor& weight_domain_N)
      : label(converted<int64_t>(label_N, shape.clips, "label_N")),
        domain(converted<int64_t>(domain_N, shape.clips, "domain_N")),
        corresponds(converted<int64_t>(corresponds_N, shape.clips, "corresponds_N")),
        ce(converted<double>(weight_ce_N, shape.clips, "weight_ce_N")),
        corr(converted<double>(weight_corr_N, shape.clips, "weight_corr_N")),
        domain_weight(converted<double>(weight_domain_N, shape.clips, "weight_domain_N")) {
    within(label, shape.classes, "label_N");
    within(domain, 2, "domain_N");
    within(corresponds, 2, "corresponds_N");
  }

 private:
  static void within(const std::vector<int64_t>& labels, int64_t classes, const char* name) {
    for (size_t n = 0; n < labels.size(); ++n) {
      TORCH_CHECK_INDEX(labels[n] == kIgnored || (0 <= labels[n] && labels[n] < classes), "adaptation_heads: ", name,
                        "[", n, "] is ", labels[n], ", expected 0 to ", classes - 1);
    }
  }
};

}  // namespace mmsada::heads
