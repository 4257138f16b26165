// Windows of a max pool: which rows of the input an output looks at, and which outputs look at an input.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>

#include "rows.h"
#include "vec.h"

namespace mmsada {

template <typename N>
inline Ints load_places(const uint8_t* p, N n) {
  return __builtin_convertvector(__builtin_convertvector(load_raw<Bytes>(p, n), Halves), Ints);
}

struct Axis {
  int64_t in, out, kernel, stride, before;

  // Input places of the window of output o: [first, last).
  int64_t first(int64_t o) const { return std::max<int64_t>(0, o * stride - before); }
  int64_t last(int64_t o) const { return std::min(in, o * stride - before + kernel); }
  // Outputs whose windows hold input i: [first_of, last_of).
  int64_t first_of(int64_t i) const {
    const int64_t least = i + before - kernel + 1;
    return least <= 0 ? 0 : (least + stride - 1) / stride;
  }
  int64_t last_of(int64_t i) const { return std::min(out, (i + before) / stride + 1); }
  int64_t place(int64_t i, int64_t o) const { return i + before - o * stride; }
};

struct Window {
  Axis t, h, w;

  int64_t place(int64_t kt, int64_t kh, int64_t kw) const { return (kt * h.kernel + kh) * w.kernel + kw; }
};

// The rows a place is joined to by windows, and where in its window each of them lies.
struct Neighbours {
  std::array<int64_t, 255> row;
  std::array<int32_t, 255> place;
  int count = 0;

  void add(int64_t r, int64_t p) {
    row[count] = r;
    place[count++] = static_cast<int32_t>(p);
  }
};

// Calls `body(row, neighbours)` for every row of the output (`outwards` false) or of the input (true), in parallel.
template <typename Body>
void for_rows(const Window& window, int64_t clips, bool outwards, const Body& body) {
  const auto& [t, h, w] = window;
  const auto size = [&](const Axis& a) { return outwards ? a.in : a.out; };
  const auto other = [&](const Axis& a) { return outwards ? a.out : a.in; };
  const auto begin_of = [&](const Axis& a, int64_t i) { return outwards ? a.first_of(i) : a.first(i); };
  const auto end_of = [&](const Axis& a, int64_t i) { return outwards ? a.last_of(i) : a.last(i); };
  const auto place = [&](const Axis& a, int64_t i, int64_t j) { return outwards ? a.place(i, j) : a.place(j, i); };
  at::parallel_for(0, clips * size(t) * size(h), 1, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const int64_t n = line / (size(t) * size(h)), it = line / size(h) % size(t), ih = line % size(h);
      const int64_t t0 = begin_of(t, it), t1 = end_of(t, it), h0 = begin_of(h, ih), h1 = end_of(h, ih);
      for (int64_t iw = 0; iw < size(w); ++iw) {
        const int64_t w0 = begin_of(w, iw), w1 = end_of(w, iw);
        Neighbours near;
        for (int64_t jt = t0; jt < t1; ++jt) {
          for (int64_t jh = h0; jh < h1; ++jh) {
            for (int64_t jw = w0; jw < w1; ++jw) {
              near.add(((n * other(t) + jt) * other(h) + jh) * other(w) + jw,
                       window.place(place(t, it, jt), place(h, ih, jh), place(w, iw, jw)));
            }
          }
        }
        body(line * size(w) + iw, near);
      }
    }
  });
}

inline Axis axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t before) {
  TORCH_CHECK(before < kernel && (out - 1) * stride - before < in, "max_pool: a window would lie outside its input");
  TORCH_CHECK(out == (in + stride - 1) / stride, "max_pool: ", in, " places at stride ", stride, " give no ", out);
  return {in, out, kernel, stride, before};
}

inline void check_triples(at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef before) {
  TORCH_CHECK(kernel.size() == 3 && stride.size() == 3 && before.size() == 3, "max_pool: expected three axes");
  for (int64_t i = 0; i < 3; ++i) {
    TORCH_CHECK(kernel[i] > 0 && stride[i] > 0 && before[i] >= 0, "max_pool: expected kernel and stride above 0");
  }
  TORCH_CHECK(kernel[0] * kernel[1] * kernel[2] <= 255, "max_pool: a window of more than 255 places");
}

inline Window window_of(at::IntArrayRef in, at::IntArrayRef out, at::IntArrayRef kernel, at::IntArrayRef stride,
              at::IntArrayRef before) {
  check_triples(kernel, stride, before);
  return {axis(in[2], out[2], kernel[0], stride[0], before[0]), axis(in[3], out[3], kernel[1], stride[1], before[1]),
          axis(in[4], out[4], kernel[2], stride[2], before[2])};
}

}  // namespace mmsada
