// Sixteen lanes of fp32, loaded from and stored to fp32 or bf16 memory. GCC's vector extensions, so one source
// serves AVX2, AVX-512 and Arm.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mmsada {

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

inline Floats all(float value) { return Floats{} + value; }

// How many of the lanes are in use: `Full` all of them, known to the compiler, or a number of them.
struct Full {};

// Calls `body(first channel, lanes)` for vectors of `width` channels.
template <int64_t width, typename Body>
inline void for_lanes(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + width <= channels; c += width) body(c, Full{});
  if (c < channels) body(c, channels - c);
}

// `n` values from `p`; lanes beyond them are 0.
template <typename V, typename T, typename N>
inline V load_raw(const T* p, N n) {
  V v{};
  if constexpr (std::is_same_v<N, Full>) {
    std::memcpy(&v, p, sizeof(V));
  } else {
    for (int64_t i = 0; i < n; ++i) std::memcpy(reinterpret_cast<char*>(&v) + i * sizeof(T), p + i, sizeof(T));
  }
  return v;
}

template <typename V, typename T, typename N>
inline void store_raw(T* p, const V& v, N n) {
  if constexpr (std::is_same_v<N, Full>) {
    std::memcpy(static_cast<void*>(p), &v, sizeof(V));
  } else {
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(static_cast<void*>(p + i), reinterpret_cast<const char*>(&v) + i * sizeof(T), sizeof(T));
    }
  }
}

template <typename N>
inline Floats load(const float* p, N n) { return load_raw<Floats>(p, n); }

template <typename N>
inline Floats load(const c10::BFloat16* p, N n) {
  return (Floats)(__builtin_convertvector(load_raw<Halves>(p, n), Words) << 16);
}

template <typename N>
inline void store(float* p, Floats v, N n) { store_raw(p, v, n); }

// To nearest, ties to even; a NaN stays one.
template <typename N>
inline void store(c10::BFloat16* p, Floats v, N n) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words kept = (v == v) ? rounded : Words{} + 0x7fc0;
  store_raw(p, __builtin_convertvector(kept, Halves), n);
}

// even[0], odd[0], even[1], odd[1], ... in two vectors.
inline void interleave(Floats even, Floats odd, Floats (&out)[2]) {
  out[0] = __builtin_shuffle(even, odd, Ints{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
  out[1] = __builtin_shuffle(even, odd, Ints{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}

// Zero below zero; a NaN stays one.
inline Floats relu(Floats v) { return (v <= 0) ? Floats{} : v; }

}  // namespace mmsada
