// Zeros around the clips of an NDHWC tensor and their conversion to the type of the products, in one pass.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "rows.h"
#include "vec.h"

namespace mmsada {
namespace {

template <typename T>
void zero(T* p, int64_t count) {
  std::memset(static_cast<void*>(p), 0, count * sizeof(T));
}

template <typename From, typename To>
void convert(const From* from, To* to, int64_t count) {
  for_lanes<kLanes>(count, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
}

template <typename From, typename To>
void pad_lines(const at::Tensor& x, at::IntArrayRef before, const at::Tensor& y) {
  const int64_t channels = x.size(1), from_line = x.size(4) * channels, to_line = y.size(4) * channels;
  const int64_t in_t = x.size(2), in_h = x.size(3), out_t = y.size(2), out_h = y.size(3), left = before[2] * channels;
  const From* from = x.const_data_ptr<From>();
  To* to = y.mutable_data_ptr<To>();
  at::parallel_for(0, y.size(0) * out_t * out_h, 1, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const int64_t n = line / (out_t * out_h), t = line / out_h % out_t - before[0], h = line % out_h - before[1];
      To* at = to + line * to_line;
      if (t < 0 || t >= in_t || h < 0 || h >= in_h) {
        zero(at, to_line);
        continue;
      }
      zero(at, left);
      convert(from + ((n * in_t + t) * in_h + h) * from_line, at + left, from_line);
      zero(at + left + from_line, to_line - left - from_line);
    }
  });
}

at::Tensor pad(const at::Tensor& x, at::IntArrayRef before, at::IntArrayRef after, at::ScalarType dtype) {
  check_rows(x, "x");
  TORCH_CHECK(x.is_contiguous(at::MemoryFormat::ChannelsLast3d), "x: expected whole channels_last_3d memory");
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "dtype: expected float32 or bfloat16");
  std::vector<int64_t> sizes = x.sizes().vec();
  for (int64_t i = 0; i < 3; ++i) {
    TORCH_CHECK(before[i] >= 0 && after[i] >= 0, "pad: expected no negative padding");
    sizes[2 + i] += before[i] + after[i];
  }
  auto y = at::empty(sizes, x.options().dtype(dtype).memory_format(at::MemoryFormat::ChannelsLast3d));
  dispatch(x, [&](auto from) {
    dispatch(y, [&](auto to) { pad_lines<decltype(from), decltype(to)>(x, before, y); });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsada, m) {
  m.def("pad(Tensor x, int[3] before, int[3] after, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmsada, CPU, m) { m.impl("pad", pad); }

}  // namespace mmsada
