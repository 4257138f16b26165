// Batch norm over groups of clips with a ReLU behind it, on NDHWC memory: statistics, forward, backward.
//
// An (N, C, T, H, W) tensor in channels_last_3d memory is a matrix of N*T*H*W rows of C channels; a channel slice of
// one has a row stride above C.

#include <torch/library.h>

#include "norm.h"

namespace mmsada {
namespace {

template <typename T>
void statistics(const Rows<const T>& x, int64_t groups, float* mean, float* var) {
  const int64_t rows = x.rows / groups, channels = x.channels;
  // Deviations from a group's first row: no cancellation where the mean is large beside the spread.
  const GroupSums sums = reduce(groups, rows, channels, [&](int64_t group, int64_t first, int64_t count, int64_t c,
                                                       auto lanes, auto& a, auto& b) {
    constexpr int W = std::extent_v<std::remove_reference_t<decltype(a)>>;
    Floats pivot[W];
    for (int w = 0; w < W; ++w) pivot[w] = load(x.row(group * rows) + c + w * kLanes, lanes);
    for (int64_t r = first; r < first + count; ++r) {
      for (int w = 0; w < W; ++w) {
        const Floats d = load(x.row(r) + c + w * kLanes, lanes) - pivot[w];
        a[w] += d;
        b[w] += d * d;
      }
    }
  });
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; ++c) {
      const double shift = sums.first(g)[c] / rows, square = sums.second(g)[c] / rows - shift * shift;
      mean[g * channels + c] = static_cast<float>(static_cast<float>(x.row(g * rows)[c]) + shift);
      var[g * channels + c] = static_cast<float>(square < 0 ? 0.0 : square);  // std::max would drop a NaN
    }
  }
}

template <typename T>
void forward(const Rows<const T>& x, const Norm& norm, const Rows<T>& y) {
  for_chunks<kTile>(norm.groups, x.rows / norm.groups, [&](int64_t group, int64_t, int64_t first, int64_t count) {
    for_channels(norm.channels, [&](int64_t c, auto width, auto lanes) {
      constexpr int W = decltype(width)::value;
      const Affine<W, decltype(lanes)> affine(norm, group, c, lanes);
      for (int64_t r = first; r < first + count; ++r) {
        for (int w = 0; w < W; ++w) {
          const Floats v = load(x.row(r) + c + w * kLanes, lanes) * affine.scale[w] + affine.shift[w];
          store(y.row(r) + c + w * kLanes, relu(v), lanes);
        }
      }
    });
  });
}

template <typename T>
void backward(const Rows<const T>& gy, const Rows<const T>& x, const Norm& norm, const Gradient& gradient,
              const Rows<T>& gx) {
  for_chunks<kTile>(norm.groups, x.rows / norm.groups, [&](int64_t group, int64_t, int64_t first, int64_t count) {
    for_channels(norm.channels, [&](int64_t at, auto width, auto lanes) {
      constexpr int W = decltype(width)::value;
      const Affine<W, decltype(lanes)> affine(norm, group, at, lanes);
      Floats b[W], c[W];
      for (int w = 0; w < W; ++w) {
        b[w] = load(gradient.b.data() + group * norm.channels + at + w * kLanes, lanes);
        c[w] = load(gradient.c.data() + group * norm.channels + at + w * kLanes, lanes);
      }
      for (int64_t r = first; r < first + count; ++r) {
        for (int w = 0; w < W; ++w) {
          const Floats value = load(x.row(r) + at + w * kLanes, lanes);
          const Floats g = load(gy.row(r) + at + w * kLanes, lanes);
          const Floats passed = (value * affine.scale[w] + affine.shift[w] <= 0) ? Floats{} : g;
          store(gx.row(r) + at + w * kLanes, passed * affine.scale[w] + (value * b[w] + c[w]), lanes);
        }
      }
    });
  });
}

std::tuple<at::Tensor, at::Tensor> group_statistics(const at::Tensor& x, int64_t groups) {
  check_rows(x, "x");
  check_groups(x, groups);
  auto mean = at::empty({groups, x.size(1)}, x.options().dtype(at::kFloat));
  auto var = at::empty({groups, x.size(1)}, x.options().dtype(at::kFloat));
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    statistics<T>(rows_of<const T>(x), groups, mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>());
  });
  return {mean, var};
}

void norm_relu_out(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& inv_std, const at::Tensor& bias,
                   at::Tensor& out) {
  check_rows(x, "x");
  check_like(out, x, "out");
  const Norm norm(x, mean, inv_std, bias);
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    forward<T>(rows_of<const T>(x), norm, rows_of<T>(out));
  });
}

at::Tensor norm_relu_backward_out(const at::Tensor& gy, const at::Tensor& x, const at::Tensor& mean,
                                  const at::Tensor& inv_std, const at::Tensor& bias, at::Tensor& gx) {
  check_rows(x, "x");
  check_like(gy, x, "gy");
  check_like(gx, x, "gx");
  const Norm norm(x, mean, inv_std, bias);
  at::Tensor result;
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    const auto from = rows_of<const T>(x), gradient = rows_of<const T>(gy);
    const GroupSums sums = backward_sums<false, T>(gradient, from, norm);
    backward<T>(gradient, from, norm, Gradient(norm, sums, from.rows / norm.groups), rows_of<T>(gx));
    result = bias_gradient(sums, norm.groups, bias);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsada, m) {
  m.def("group_statistics(Tensor x, int groups) -> (Tensor mean, Tensor var)");
  m.def("norm_relu_out(Tensor x, Tensor mean, Tensor inv_std, Tensor bias, Tensor(a!) out) -> ()");
  m.def(
      "norm_relu_backward_out(Tensor gy, Tensor x, Tensor mean, Tensor inv_std, Tensor bias, Tensor(a!) gx) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmsada, CPU, m) {
  m.impl("group_statistics", group_statistics);
  m.impl("norm_relu_out", norm_relu_out);
  m.impl("norm_relu_backward_out", norm_relu_backward_out);
}

}  // namespace mmsada
