// Max pooling on NDHWC memory with one byte per output for the place of the maximum in its window, and the backward of a
// batch norm with a ReLU whose output alone was pooled.
//
// Values are compared as integers of the same order, which spares bf16 its conversions. The backward gathers: every
// input adds up the windows that chose it, so no two threads write one place and nothing is zeroed first.

#include <torch/library.h>

#include "norm.h"
#include "pool.h"

namespace mmsada {
namespace {

typedef int16_t Keys16 __attribute__((vector_size(64)));
typedef int32_t Keys32 __attribute__((vector_size(64)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));

template <typename T>
struct Key;
template <>
struct Key<c10::BFloat16> {
  using V = Keys16;
  using Narrow = Bytes32;
  static constexpr int64_t lanes = 32;

  static Narrow narrow(V v) { return __builtin_convertvector(v, Narrow); }
};
template <>
struct Key<float> {
  using V = Keys32;
  using Narrow = Bytes;
  static constexpr int64_t lanes = 16;

  // In two steps, which are two instructions; GCC 12 takes one step apart into sixteen.
  static Narrow narrow(V v) { return __builtin_convertvector(__builtin_convertvector(v, Halves), Narrow); }
};

// Sign and magnitude to two's complement, and back: the same exchange.
inline Keys16 exchanged(Keys16 v) { return v ^ ((v >> 15) & 0x7fff); }
inline Keys32 exchanged(Keys32 v) { return v ^ ((v >> 31) & 0x7fffffff); }

// Keys in the order of the values, where both zeros are one and a NaN of either sign, which x86 makes with its sign set,
// is above all. `infinity` is the key of minus infinity, below which the keys of such NaNs lie.
template <typename V, typename Element>
inline V ordered(V v, Element infinity, Element highest) {
  V key = exchanged(v);
  key = (key < infinity) ? V{} + highest : key;
  return key - (V)(key == -1);
}
inline Keys16 ordered(Keys16 v) { return ordered<Keys16, int16_t>(v, static_cast<int16_t>(0x807f), INT16_MAX); }
inline Keys32 ordered(Keys32 v) { return ordered<Keys32, int32_t>(v, static_cast<int32_t>(0x807fffff), INT32_MAX); }

template <typename T, typename N>
inline void pool_lanes(const Rows<const T>& x, const Neighbours& near, int64_t c, N lanes, T* y, uint8_t* places) {
  using V = typename Key<T>::V;
  using Element = std::remove_reference_t<decltype(V{}[0])>;
  V best = ordered(load_raw<V>(x.row(near.row[0]) + c, lanes));
  V place = V{} + static_cast<Element>(near.place[0]);
  for (int i = 1; i < near.count; ++i) {
    const V v = ordered(load_raw<V>(x.row(near.row[i]) + c, lanes));
    const auto is_greater = v > best;
    best = is_greater ? v : best;
    place = is_greater ? V{} + static_cast<Element>(near.place[i]) : place;
  }
  store_raw(y + c, exchanged(best), lanes);
  store_raw(places + c, Key<T>::narrow(place), lanes);
}

template <typename T>
void forward(const Rows<const T>& x, const Window& window, int64_t clips, const Rows<T>& y, uint8_t* places) {
  for_rows(window, clips, false, [&](int64_t row, const Neighbours& near) {
    for_lanes<Key<T>::lanes>(x.channels, [&](int64_t c, auto lanes) {
      pool_lanes<T>(x, near, c, lanes, y.row(row), places + row * x.channels);
    });
  });
}

// What the windows that chose these lanes of an input hand back to it.
template <typename T, typename N>
inline void gather(const Rows<const T>& gy, const uint8_t* places, const Neighbours& near, int64_t c, N lanes,
                   Floats& sum) {
  for (int i = 0; i < near.count; ++i) {
    const Ints chosen = load_places(places + near.row[i] * gy.channels + c, lanes);
    sum += (chosen == near.place[i]) ? load(gy.row(near.row[i]) + c, lanes) : Floats{};
  }
}

// The same for two vectors of lanes. Two values of bf16 make a word, of which a shift or a mask makes fp32: half the
// instructions of widening them one vector at a time.
inline void gather(const Rows<const c10::BFloat16>& gy, const uint8_t* places, const Neighbours& near, int64_t c,
                   Floats (&sum)[2]) {
  Floats even{}, odd{};
  for (int i = 0; i < near.count; ++i) {
    const auto chosen = __builtin_convertvector(
        load_raw<Bytes32>(places + near.row[i] * gy.channels + c, Full{}), Keys16);
    const auto value = load_raw<Keys16>(gy.row(near.row[i]) + c, Full{});
    const Words pairs = (Words)(value & (Keys16)(chosen == static_cast<int16_t>(near.place[i])));
    even += (Floats)(pairs << 16);
    odd += (Floats)(pairs & 0xffff0000u);
  }
  interleave(even, odd, sum);
}

inline void gather(const Rows<const float>& gy, const uint8_t* places, const Neighbours& near, int64_t c,
                   Floats (&sum)[2]) {
  for (int w = 0; w < 2; ++w) {
    sum[w] = Floats{};
    gather<float>(gy, places, near, c + w * kLanes, Full{}, sum[w]);
  }
}

// Calls `finish(first channel, lanes, what was gathered)` for every vector of the channels of a row.
template <typename T, typename Finish>
inline void gather_row(const Rows<const T>& gy, const uint8_t* places, const Neighbours& near, const Finish& finish) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= gy.channels; c += 2 * kLanes) {
    Floats sum[2];
    gather(gy, places, near, c, sum);
    finish(c, Full{}, sum[0]);
    finish(c + kLanes, Full{}, sum[1]);
  }
  if (c + kLanes <= gy.channels) {
    Floats sum{};
    gather<T>(gy, places, near, c, Full{}, sum);
    finish(c, Full{}, sum);
    c += kLanes;
  }
  if (c < gy.channels) {
    Floats sum{};
    gather<T>(gy, places, near, c, gy.channels - c, sum);
    finish(c, gy.channels - c, sum);
  }
}

template <typename T>
void backward(const Rows<const T>& gy, const uint8_t* places, const Window& window, int64_t clips, bool adds,
              const Rows<T>& gx) {
  for_rows(window, clips, true, [&](int64_t row, const Neighbours& near) {
    gather_row<T>(gy, places, near, [&](int64_t c, auto lanes, Floats sum) {
      T* at = gx.row(row) + c;
      store(at, adds ? sum + load(at, lanes) : sum, lanes);
    });
  });
}

// As `backward` of batch_norm.cpp, where what passed the ReLU is gathered from the pool's windows.
template <typename T>
void norm_backward(const Rows<const T>& passed, const uint8_t* places, const Window& window, int64_t clips,
                   const Rows<const T>& x, const Norm& norm, const Gradient& gradient, const Rows<T>& gx) {
  const int64_t rows = x.rows / norm.groups;
  for_rows(window, clips, true, [&](int64_t row, const Neighbours& near) {
    const int64_t group = row / rows * norm.channels;
    gather_row<T>(passed, places, near, [&](int64_t at, auto lanes, Floats sum) {
      const Floats b = load(gradient.b.data() + group + at, lanes), c = load(gradient.c.data() + group + at, lanes);
      const Floats scale = load(norm.inv_std + group + at, lanes);
      store(gx.row(row) + at, sum * scale + (load(x.row(row) + at, lanes) * b + c), lanes);
    });
  });
}

std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                                            at::IntArrayRef before) {
  check_rows(x, "x");
  std::vector<int64_t> sizes = {x.size(0), x.size(1)};
  check_triples(kernel, stride, before);
  for (int64_t i = 0; i < 3; ++i) sizes.push_back((x.size(2 + i) + stride[i] - 1) / stride[i]);
  auto y = at::empty(sizes, x.options().memory_format(at::MemoryFormat::ChannelsLast3d));
  auto places = at::empty(sizes, x.options().dtype(at::kByte).memory_format(at::MemoryFormat::ChannelsLast3d));
  const auto window = window_of(x.sizes(), y.sizes(), kernel, stride, before);
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    forward<T>(rows_of<const T>(x), window, x.size(0), rows_of<T>(y), places.mutable_data_ptr<uint8_t>());
  });
  return {y, places};
}

void check_places(const at::Tensor& places, const at::Tensor& gy) {
  TORCH_CHECK(places.sizes() == gy.sizes() && places.is_contiguous(at::MemoryFormat::ChannelsLast3d),
              "places: expected what max_pool gave for an output like gy");
}

void max_pool_backward_out(const at::Tensor& gy, const at::Tensor& places, at::IntArrayRef kernel,
                           at::IntArrayRef stride, at::IntArrayRef before, bool adds, at::Tensor& gx) {
  check_rows(gy, "gy");
  check_rows(gx, "gx");
  check_places(places, gy);
  TORCH_CHECK(gy.scalar_type() == gx.scalar_type(), "gy: expected the type of gx");
  TORCH_CHECK(gy.size(0) == gx.size(0) && gy.size(1) == gx.size(1), "gy: expected the clips and channels of gx");
  const auto window = window_of(gx.sizes(), gy.sizes(), kernel, stride, before);
  dispatch(gx, [&](auto type) {
    using T = decltype(type);
    backward<T>(rows_of<const T>(gy), places.const_data_ptr<uint8_t>(), window, gx.size(0), adds, rows_of<T>(gx));
  });
}

at::Tensor norm_relu_pool_backward_out(const at::Tensor& gy, const at::Tensor& pooled, const at::Tensor& places,
                                       const at::Tensor& x, const at::Tensor& mean, const at::Tensor& inv_std,
                                       const at::Tensor& bias, at::IntArrayRef kernel, at::IntArrayRef stride,
                                       at::IntArrayRef before, at::Tensor& gx) {
  check_rows(x, "x");
  check_like(gx, x, "gx");
  check_rows(pooled, "pooled");
  check_like(gy, pooled, "gy");
  check_places(places, gy);
  TORCH_CHECK(gy.size(0) == x.size(0) && gy.size(1) == x.size(1), "gy: expected the clips and channels of x");
  const auto window = window_of(x.sizes(), gy.sizes(), kernel, stride, before);
  const Norm norm(x, mean, inv_std, bias);
  auto kept = at::empty(gy.sizes(), gy.options().memory_format(at::MemoryFormat::ChannelsLast3d));
  at::Tensor result;
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    const auto from = rows_of<const T>(x);
    const GroupSums sums = backward_sums<true, T>(rows_of<const T>(gy), rows_of<const T>(pooled), norm, rows_of<T>(kept));
    norm_backward<T>(rows_of<const T>(kept), places.const_data_ptr<uint8_t>(), window, x.size(0), from, norm,
                     Gradient(norm, sums, from.rows / norm.groups), rows_of<T>(gx));
    result = bias_gradient(sums, norm.groups, bias);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsada, m) {
  m.def("max_pool(Tensor x, int[3] kernel, int[3] stride, int[3] before) -> (Tensor y, Tensor places)");
  m.def(
      "max_pool_backward_out(Tensor gy, Tensor places, int[3] kernel, int[3] stride, int[3] before, bool adds, "
      "Tensor(a!) gx) -> ()");
  m.def(
      "norm_relu_pool_backward_out(Tensor gy, Tensor pooled, Tensor places, Tensor x, Tensor mean, Tensor inv_std, "
      "Tensor bias, int[3] kernel, int[3] stride, int[3] before, Tensor(a!) gx) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmsada, CPU, m) {
  m.impl("max_pool", max_pool);
  m.impl("max_pool_backward_out", max_pool_backward_out);
  m.impl("norm_relu_pool_backward_out", norm_relu_pool_backward_out);
}

}  // namespace mmsada
