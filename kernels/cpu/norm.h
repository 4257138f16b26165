// Batch norm over groups of rows: reductions over a group, and the per-channel coefficients of forward and backward.
//
// Rows of a group are reduced in chunks of a fixed size and the chunks in their order, so that the result does not
// depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "rows.h"
#include "vec.h"

namespace mmsada {

constexpr int64_t kChunk = 512;  // rows whose sums are added up in fp32
// Rows that are walked through channel by channel: few, so that memory is still read nearly in its order.
constexpr int64_t kTile = 16;

// Calls `body(group, chunk, first row, rows)` for every chunk of every group, in parallel.
template <int64_t kRows, typename Body>
void for_chunks(int64_t groups, int64_t rows, const Body& body) {
  const int64_t chunks = (rows + kRows - 1) / kRows;
  at::parallel_for(0, groups * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / chunks, chunk = i % chunks, first = chunk * kRows;
      body(group, chunk, group * rows + first, std::min(kRows, rows - first));
    }
  });
}

// Calls `body(first channel, W, lanes)`, W a compile-time number of vectors.
template <typename Body>
inline void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) body(c, std::integral_constant<int, 2>{}, Full{});
  for (; c + kLanes <= channels; c += kLanes) body(c, std::integral_constant<int, 1>{}, Full{});
  if (c < channels) body(c, std::integral_constant<int, 1>{}, channels - c);
}

// Two sums per channel over the rows of each group, (G, 2, C).
struct GroupSums {
  int64_t channels;
  std::vector<double> values;

  const double* first(int64_t group) const { return values.data() + group * 2 * channels; }
  const double* second(int64_t group) const { return first(group) + channels; }
};

template <typename Term>
GroupSums reduce(int64_t groups, int64_t rows, int64_t channels, const Term& term) {
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  std::vector<float> partial(groups * chunks * 2 * channels, 0.0f);
  for_chunks<kChunk>(groups, rows, [&](int64_t group, int64_t chunk, int64_t first, int64_t count) {
    float* out = partial.data() + (group * chunks + chunk) * 2 * channels;
    for (int64_t tile = 0; tile < count; tile += kTile) {
      for_channels(channels, [&](int64_t c, auto width, auto lanes) {
        constexpr int W = decltype(width)::value;
        Floats a[W], b[W];
        for (int w = 0; w < W; ++w) {
          a[w] = load(out + c + w * kLanes, lanes);
          b[w] = load(out + channels + c + w * kLanes, lanes);
        }
        term(group, first + tile, std::min(kTile, count - tile), c, lanes, a, b);
        for (int w = 0; w < W; ++w) {
          store(out + c + w * kLanes, a[w], lanes);
          store(out + channels + c + w * kLanes, b[w], lanes);
        }
      });
    }
  });
  GroupSums sums{channels, std::vector<double>(groups * 2 * channels, 0.0)};
  for (int64_t i = 0; i < groups * chunks; ++i) {
    double* into = sums.values.data() + i / chunks * 2 * channels;
    const float* from = partial.data() + i * 2 * channels;
    for (int64_t c = 0; c < 2 * channels; ++c) into[c] += from[c];
  }
  return sums;
}

inline void check_groups(const at::Tensor& x, int64_t groups) {
  TORCH_CHECK(groups > 0 && x.numel() > 0 && x.size(0) % groups == 0, "groups: ", x.size(0), " clips are not ", groups,
              " groups");
}

// Statistics and offsets as the operators take them, and the forward as scale * x + shift.
struct Norm {
  int64_t groups, channels;
  const float *mean, *inv_std, *bias;
  std::vector<float> shift;

  // `x` is what is normalised: whole groups of clips.
  Norm(const at::Tensor& x, const at::Tensor& mean_GC, const at::Tensor& inv_std_GC, const at::Tensor& bias_C)
      : groups(mean_GC.dim() == 2 ? mean_GC.size(0) : 0),
        channels(bias_C.numel()),
        mean(floats(mean_GC, groups * channels, "mean")),
        inv_std(floats(inv_std_GC, groups * channels, "inv_std")),
        bias(floats(bias_C, channels, "bias")),
        shift(groups * channels) {
    check_groups(x, groups);
    TORCH_CHECK(channels == x.size(1), "bias: expected ", x.size(1), " values, one a channel, got ", channels);
    for (int64_t i = 0; i < groups * channels; ++i) shift[i] = bias[i % channels] - mean[i] * inv_std[i];
  }

 private:
  static const float* floats(const at::Tensor& t, int64_t numel, const char* name) {
    TORCH_CHECK(t.scalar_type() == at::kFloat && t.is_contiguous() && t.numel() == numel, name, ": expected ", numel,
                " contiguous float32 values");
    return t.const_data_ptr<float>();
  }
};

// The forward for W vectors of channels of a group.
template <int W, typename N>
struct Affine {
  Floats scale[W], shift[W];

  Affine(const Norm& norm, int64_t group, int64_t channel, N lanes) {
    const int64_t at = group * norm.channels + channel;
    for (int w = 0; w < W; ++w) {
      scale[w] = load(norm.inv_std + at + w * kLanes, lanes);
      shift[w] = load(norm.shift.data() + at + w * kLanes, lanes);
    }
  }
};

// GroupSums of the gradient that the ReLU lets pass, and of it times the normalised input; with `Keeps`, what passes is left
// in `kept`.
template <bool Keeps = false, typename T>
GroupSums backward_sums(const Rows<const T>& gy, const Rows<const T>& x, const Norm& norm, const Rows<T>& kept = {}) {
  return reduce(norm.groups, x.rows / norm.groups, norm.channels,
                [&](int64_t group, int64_t first, int64_t count, int64_t c, auto lanes, auto& a, auto& b) {
                  constexpr int W = std::extent_v<std::remove_reference_t<decltype(a)>>;
                  const Affine<W, decltype(lanes)> affine(norm, group, c, lanes);
                  Floats offset[W];
                  for (int w = 0; w < W; ++w) offset[w] = load(norm.bias + c + w * kLanes, lanes);
                  for (int64_t r = first; r < first + count; ++r) {
                    for (int w = 0; w < W; ++w) {
                      const Floats v = load(x.row(r) + c + w * kLanes, lanes) * affine.scale[w] + affine.shift[w];
                      const Floats g = load(gy.row(r) + c + w * kLanes, lanes);
                      const Floats passed = (v <= 0) ? Floats{} : g;
                      if constexpr (Keeps) store(kept.row(r) + c + w * kLanes, passed, lanes);
                      a[w] += passed;
                      b[w] += passed * (v - offset[w]);
                    }
                  }
                });
}

// The bias's gradient: the first sums over all groups.
inline at::Tensor bias_gradient(const GroupSums& sums, int64_t groups, const at::Tensor& bias) {
  auto gradient = at::empty(bias.sizes(), bias.options());
  float* out = gradient.mutable_data_ptr<float>();
  for (int64_t c = 0; c < sums.channels; ++c) {
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) sum += sums.first(g)[c];
    out[c] = static_cast<float>(sum);
  }
  return gradient;
}

// gx = inv_std * (passed - mean(passed) - normalised * mean(passed * normalised)), as inv_std * passed + x * b + c.
struct Gradient {
  std::vector<float> b, c;

  Gradient(const Norm& norm, const GroupSums& sums, int64_t rows)
      : b(norm.groups * norm.channels), c(norm.groups * norm.channels) {
    for (int64_t g = 0; g < norm.groups; ++g) {
      for (int64_t i = 0; i < norm.channels; ++i) {
        const int64_t at = g * norm.channels + i;
        const double s = norm.inv_std[at], m = norm.mean[at];
        const double first = sums.first(g)[i] / rows, second = sums.second(g)[i] / rows;
        b[at] = static_cast<float>(-s * s * second);
        c[at] = static_cast<float>(s * (m * s * second - first));
      }
    }
  }
};

}  // namespace mmsada
