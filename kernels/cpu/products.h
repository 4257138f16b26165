// Matrix products in tiles that stay in registers, with fp32 sums: fp32 operands, or pairs of bf16.
//
// A word is 32 bits of the summed axis: one fp32 value, or two bf16 values of which the lower half comes first.
// `Single` and `Half` say how many values that is and how sixteen words are multiplied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vec.h"

namespace mmsada {

// Vectors as wide as a register; tiles of sums that fill three quarters of the registers (on Arm a vector is two).
#ifdef __AVX512F__
constexpr int kWidth = 16, kTileRows = 6, kTileVectors = 4;
#else
constexpr int kWidth = 8, kTileRows = 3, kTileVectors = 4;
#endif
constexpr int64_t kSpan = kTileVectors * kWidth;       // columns of a tile
constexpr int kDotRows = kWidth / 4, kDotColumns = 4;  // inner products are taken as many at a time as a vector holds

typedef float Sums __attribute__((vector_size(4 * kWidth)));
typedef int32_t Lanes __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Packed __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Narrow __attribute__((vector_size(2 * kWidth)));

// Memory that is aligned for whole vectors; not set to anything.
using Buffer = std::unique_ptr<Packed[]>;
inline Buffer buffer(int64_t vectors) { return Buffer(new Packed[vectors]); }

// Up to kWidth values from and to memory; lanes beyond `lanes` are 0, and are not written.
inline Sums load_wide(const float* p, int64_t lanes) {
  return lanes == kWidth ? load_raw<Sums>(p, Full{}) : load_raw<Sums>(p, lanes);
}
inline Sums load_wide(const c10::BFloat16* p, int64_t lanes) {
  const Narrow bits = lanes == kWidth ? load_raw<Narrow>(p, Full{}) : load_raw<Narrow>(p, lanes);
  return (Sums)(__builtin_convertvector(bits, Packed) << 16);
}

// bf16 values, to nearest, ties to even; a NaN stays one.
inline Narrow narrowed(Sums v) {
#ifdef __AVX512BF16__
  return (Narrow)_mm512_cvtneps_pbh((__m512)v);
#else
  const Packed bits = (Packed)v;
  const Packed kept = (v == v) ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Packed{} + 0x7fc0;
  return __builtin_convertvector(kept, Narrow);
#endif
}

// The same, each in the lower half of a word.
inline Packed narrowed_words(Sums v) { return __builtin_convertvector(narrowed(v), Packed); }

inline void store_wide(float* p, Sums v, int64_t lanes) {
  lanes == kWidth ? store_raw(p, v, Full{}) : store_raw(p, v, lanes);
}
inline void store_wide(c10::BFloat16* p, Sums v, int64_t lanes) {
  lanes == kWidth ? store_raw(p, narrowed(v), Full{}) : store_raw(p, narrowed(v), lanes);
}

// The lanes of vector v in use where `columns` are left.
inline int64_t lanes_of(int64_t columns, int v) { return std::clamp<int64_t>(columns - v * kWidth, 0, kWidth); }

struct Single {
  using Value = float;
  static constexpr int64_t kPack = 1;  // values in a word

  static Sums multiply_add(Sums sum, Packed a, Packed b) { return sum + (Sums)a * (Sums)b; }
};

struct Half {
  using Value = c10::BFloat16;
  static constexpr int64_t kPack = 2;

  static Sums multiply_add(Sums sum, Packed a, Packed b) {
#ifdef __AVX512BF16__
    return (Sums)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const Packed upper = Packed{} + 0xffff0000u;
    return sum + (Sums)(a << 16) * (Sums)(b << 16) + (Sums)(a & upper) * (Sums)(b & upper);
#endif
  }
};

// Adds the two halves of every group of `width` lanes; the groups of `a` come first, then those of `b`.
template <int width>
inline Sums folded(Sums a, Sums b) {
  Lanes low, high;
  for (int lane = 0; lane < kWidth; ++lane) {
    low[lane] = lane / (width / 2) * width + lane % (width / 2);  // lanes of b are counted on from those of a
    high[lane] = low[lane] + width / 2;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Lane i is the sum over the lanes of v[i], for kWidth vectors.
template <int width = kWidth>
inline Sums sums_of(const Sums* v) {
  if constexpr (width == 2) {
    return folded<2>(v[0], v[1]);
  } else {
    Sums half[width / 2];
#pragma GCC unroll 8
    for (int i = 0; i < width / 2; ++i) half[i] = folded<width>(v[2 * i], v[2 * i + 1]);
    return sums_of<width / 2>(half);
  }
}

// Lane i * kDotColumns + j is a row i times b row j.
template <typename P>
inline Sums dot_tile(const typename P::Value* const* a, const typename P::Value* const* b, int64_t depth) {
  constexpr int64_t step = kWidth * P::kPack;
  Sums c[kDotRows * kDotColumns] = {};
  const auto advance = [&](int64_t d, auto lanes) __attribute__((always_inline)) {
    Packed x[kDotRows];
#pragma GCC unroll 4
    for (int i = 0; i < kDotRows; ++i) x[i] = load_raw<Packed>(a[i] + d, lanes);
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      const Packed y = load_raw<Packed>(b[j] + d, lanes);
#pragma GCC unroll 4
      for (int i = 0; i < kDotRows; ++i) {
        c[i * kDotColumns + j] = P::multiply_add(c[i * kDotColumns + j], x[i], y);
      }
    }
  };
  int64_t d = 0;
  for (; d + step <= depth; d += step) advance(d, Full{});
  if (d < depth) advance(d, depth - d);
  return sums_of(c);
}

// out[i][j] = a row i times b row j, `depth` values long; row i of a starts at a + i * a_stride.
template <typename P>
void inner_products(const typename P::Value* a, int64_t a_stride, int64_t rows, const typename P::Value* const* b,
                    int64_t columns, int64_t depth, float* out, int64_t out_stride) {
  using Value = typename P::Value;
  for (int64_t j = 0; j < columns; j += kDotColumns) {
    const Value* right[kDotColumns];  // rows beyond the last are the last once more, and not kept
    for (int64_t k = 0; k < kDotColumns; ++k) right[k] = b[std::min(j + k, columns - 1)];
    for (int64_t i = 0; i < rows; i += kDotRows) {
      const Value* left[kDotRows];
      for (int64_t k = 0; k < kDotRows; ++k) left[k] = a + std::min(i + k, rows - 1) * a_stride;
      const Sums found = dot_tile<P>(left, right, depth);
      const float* at = reinterpret_cast<const float*>(&found);
      const int64_t width = std::min<int64_t>(kDotColumns, columns - j);
      for (int64_t k = 0; k < std::min<int64_t>(kDotRows, rows - i); ++k) {
        std::memcpy(out + (i + k) * out_stride + j, at + k * kDotColumns, width * sizeof(float));
      }
    }
  }
}

// Where the words that are multiplied with whole vectors lie: row i at step t is at[i * row + t * step].
struct Factors {
  const uint32_t* at;
  int64_t row, step;
};

template <int rows>
using Tile = Sums[rows][kTileVectors];

// c[i][v] += the sum over `steps` words t of a(i, t) * b(t, v); b holds kTileVectors vectors a step.
template <typename P, int rows>
inline __attribute__((always_inline)) void outer_products(Factors a, const Packed* b, int64_t steps, Tile<rows>& c) {
  for (int64_t t = 0; t < steps; ++t) {
    const Packed* y = b + t * kTileVectors;
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Packed x = Packed{} + a.at[i * a.row + t * a.step];
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) c[i][v] = P::multiply_add(c[i][v], x, y[v]);
    }
  }
}

// Calls `body(first row, rows)` for tiles of kTileRows rows and one of what remains, `rows` known to the compiler.
template <typename Body>
inline void for_tiles(int64_t rows, const Body& body) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) body(i, std::integral_constant<int, kTileRows>{});
  const auto rest = [&](auto count) {
    if (rows - i == count) body(i, count);
  };
  rest(std::integral_constant<int, 1>{});
  rest(std::integral_constant<int, 2>{});
  if constexpr (kTileRows > 3) {
    rest(std::integral_constant<int, 3>{});
    rest(std::integral_constant<int, 4>{});
    rest(std::integral_constant<int, 5>{});
  }
}

// The right side of `outer_products` from rows of any type: steps of one row, or of two for bf16, at `columns` columns,
// times `scale`. Returns where the next step goes.
template <typename P, typename T>
Packed* pack(const T* from, int64_t stride, int64_t rows, int64_t columns, float scale, Packed* out) {
  for (int64_t r = 0; r < rows; r += P::kPack, out += kTileVectors) {
    const T* even = from + r * stride;
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t lanes = lanes_of(columns, v);
      const Sums a = scale * load_wide(even + v * kWidth, lanes);
      if constexpr (P::kPack == 1) {
        out[v] = (Packed)a;
      } else {
        const Sums b = r + 1 < rows ? scale * load_wide(even + stride + v * kWidth, lanes) : Sums{};
        out[v] = narrowed_words(a) | (narrowed_words(b) << 16);
      }
    }
  }
  return out;
}

template <typename P>
constexpr int64_t words_of(int64_t values) { return (values + P::kPack - 1) / P::kPack; }

}  // namespace mmsada
