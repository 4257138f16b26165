// A channels_last_3d tensor, or a channel slice of one, as rows of channels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mmsada {

template <typename T>
struct Rows {
  T* data;
  int64_t rows, channels, stride;

  T* row(int64_t r) const { return data + r * stride; }
};

inline void check_rows(const at::Tensor& x, const char* name) {
  TORCH_CHECK(x.dim() == 5 && (x.stride(1) == 1 || x.size(1) == 1), name, ": expected (N, C, T, H, W) in channels_last_3d memory");
  // The pixels of all clips must follow each other at one stride; an axis of size 1 may have any.
  int64_t expected = -1;
  for (int64_t axis : {4, 3, 2, 0}) {
    if (x.size(axis) == 1) continue;
    TORCH_CHECK(expected < 0 || x.stride(axis) == expected, name, ": expected channels_last_3d memory");
    expected = x.stride(axis) * x.size(axis);
  }
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, name, ": expected float32 or bfloat16");
}

inline void check_like(const at::Tensor& y, const at::Tensor& x, const char* name) {
  check_rows(y, name);
  TORCH_CHECK(y.sizes() == x.sizes() && y.scalar_type() == x.scalar_type(), name, ": expected the shape and type of x");
}

template <typename T>
Rows<T> rows_of(const at::Tensor& x) {
  int64_t stride = x.size(1);  // of the innermost axis that has more than one place
  for (int64_t axis : {4, 3, 2, 0}) {
    if (x.size(axis) > 1) {
      stride = x.stride(axis);
      break;
    }
  }
  const int64_t rows = x.size(0) * x.size(2) * x.size(3) * x.size(4);
  if constexpr (std::is_const_v<T>) {
    return {x.const_data_ptr<std::remove_const_t<T>>(), rows, x.size(1), stride};
  } else {
    return {x.mutable_data_ptr<T>(), rows, x.size(1), stride};
  }
}

template <typename Body>
void dispatch(const at::Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    body(c10::BFloat16{});
  }
}

}  // namespace mmsada
