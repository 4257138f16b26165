// Matrix products in tiles that stay in registers, with fp32 sums: fp32 operands, or pairs of bf16.
//
// A word is 32 bits of the summed axis: one fp32 value, or two bf16 values of which the lower half comes first. `Single`
// and `Half` say how many values that is and how sixteen words are multiplied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vec.h"

namespace mmsada {

#ifdef __AVX512F__
constexpr int kTileRows = 6, kTileVectors = 4, kDotTile = 4;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 3, kTileVectors = 2, kDotTile = 2;  // 12 of 16, as sixteen lanes are two registers
#endif
constexpr int64_t kSpan = kTileVectors * kLanes;  // columns of a tile
constexpr int kDots = 4;                          // inner products are taken 4 x 4 at a time

// Words that are aligned for whole vectors; not set to anything.
using Buffer = std::unique_ptr<Words[]>;
inline Buffer buffer(int64_t vectors) { return Buffer(new Words[vectors]); }

// Sixteen bf16 values, to nearest, ties to even; a NaN stays one.
inline Halves narrowed(Floats v) {
#ifdef __AVX512BF16__
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  const Words bits = (Words)v;
  const Words kept = (v == v) ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7fc0;
  return __builtin_convertvector(kept, Halves);
#endif
}

// The same, each in the lower half of a word.
inline Words narrowed_words(Floats v) { return __builtin_convertvector(narrowed(v), Words); }

struct Single {
  using Value = float;
  static constexpr int64_t kPack = 1;  // values in a word

  static Floats multiply_add(Floats sum, Words a, Words b) { return sum + (Floats)a * (Floats)b; }
};

struct Half {
  using Value = c10::BFloat16;
  static constexpr int64_t kPack = 2;

  static Floats multiply_add(Floats sum, Words a, Words b) {
#ifdef __AVX512BF16__
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const Words upper = Words{} + 0xffff0000u;
    return sum + (Floats)(a << 16) * (Floats)(b << 16) + (Floats)(a & upper) * (Floats)(b & upper);
#endif
  }
};

// Halves the groups of lanes of `a` and `b`, adding the two halves of each; groups of `a` first.
template <int width>
inline Floats folded(Floats a, Floats b) {
  Ints low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / (width / 2), first = group * width + lane % (width / 2);  // b follows a: lanes 16 to 31
    low[lane] = first;
    high[lane] = first + width / 2;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Lane i is the sum over the lanes of v[i].
inline Floats sums_of(Floats* v) {
  for (int i = 0; i < 8; ++i) v[i] = folded<16>(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 4; ++i) v[i] = folded<8>(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 2; ++i) v[i] = folded<4>(v[2 * i], v[2 * i + 1]);
  return folded<2>(v[0], v[1]);
}

// sums[i * kDots + j] += a row i times b row j for a tile of kDotTile x kDotTile rows.
template <typename P>
inline void dot_tile(const typename P::Value* const* a, const typename P::Value* const* b, int64_t depth, Floats* sums) {
  constexpr int64_t step = kLanes * P::kPack;
  Floats c[kDotTile][kDotTile] = {};
  const auto advance = [&](int64_t d, auto lanes) __attribute__((always_inline)) {
    Words x[kDotTile];
#pragma GCC unroll 4
    for (int i = 0; i < kDotTile; ++i) x[i] = load_raw<Words>(a[i] + d, lanes);
#pragma GCC unroll 4
    for (int j = 0; j < kDotTile; ++j) {
      const Words y = load_raw<Words>(b[j] + d, lanes);
#pragma GCC unroll 4
      for (int i = 0; i < kDotTile; ++i) c[i][j] = P::multiply_add(c[i][j], x[i], y);
    }
  };
  int64_t d = 0;
  for (; d + step <= depth; d += step) advance(d, Full{});
  if (d < depth) advance(d, depth - d);
#pragma GCC unroll 4
  for (int i = 0; i < kDotTile; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kDotTile; ++j) sums[i * kDots + j] = c[i][j];
  }
}

// out[i][j] = a row i times b row j, `depth` values long; row i of a starts at a + i * a_stride.
template <typename P>
void inner_products(const typename P::Value* a, int64_t a_stride, int64_t rows, const typename P::Value* const* b,
                    int64_t columns, int64_t depth, float* out, int64_t out_stride) {
  using Value = typename P::Value;
  for (int64_t j = 0; j < columns; j += kDots) {
    const Value* right[kDots];  // rows beyond the last are the last once more, and not kept
    for (int64_t k = 0; k < kDots; ++k) right[k] = b[std::min(j + k, columns - 1)];
    for (int64_t i = 0; i < rows; i += kDots) {
      const Value* left[kDots];
      for (int64_t k = 0; k < kDots; ++k) left[k] = a + std::min(i + k, rows - 1) * a_stride;
      Floats sums[kDots * kDots];
      for (int k = 0; k < kDots; k += kDotTile) {
        for (int l = 0; l < kDots; l += kDotTile) dot_tile<P>(left + k, right + l, depth, sums + k * kDots + l);
      }
      const Floats found = sums_of(sums);
      const float* at = reinterpret_cast<const float*>(&found);
      const int64_t width = std::min<int64_t>(kDots, columns - j);
      for (int64_t k = 0; k < std::min<int64_t>(kDots, rows - i); ++k) {
        std::memcpy(out + (i + k) * out_stride + j, at + k * kDots, width * sizeof(float));
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
using Tile = Floats[rows][kTileVectors];

// c[i][v] += the sum over `steps` words t of a(i, t) * b(t, v); b holds kTileVectors vectors a step.
template <typename P, int rows>
inline __attribute__((always_inline)) void outer_products(Factors a, const Words* b, int64_t steps, Tile<rows>& c) {
  for (int64_t t = 0; t < steps; ++t) {
    const Words* y = b + t * kTileVectors;
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Words x = Words{} + a.at[i * a.row + t * a.step];
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

// The lanes of vector v of a span of `columns` columns (0 to kSpan) that are in use.
inline int64_t lanes_of(int64_t columns, int v) { return std::clamp<int64_t>(columns - v * kLanes, 0, kLanes); }

template <typename T>
inline Floats load_lanes(const T* p, int64_t lanes) {
  return lanes == kLanes ? load(p, Full{}) : load(p, lanes);
}

template <typename T>
inline void store_lanes(T* p, Floats v, int64_t lanes) {
  if (lanes == kLanes) {
    store(p, v, Full{});
  } else {
    store(p, v, lanes);
  }
}

// One step of the right side of `outer_products` from rows of any type: `even` (and for bf16 `odd`, or null for none)
// at `columns` columns, times `scale`.
template <typename P, typename T>
inline void pack_step(const T* even, const T* odd, int64_t columns, float scale, Words* out) {
  for (int v = 0; v < kTileVectors; ++v) {
    const int64_t lanes = lanes_of(columns, v);
    const Floats a = scale * load_lanes(even + v * kLanes, lanes);
    if constexpr (P::kPack == 1) {
      out[v] = (Words)a;
    } else {
      const Floats b = odd == nullptr ? Floats{} : scale * load_lanes(odd + v * kLanes, lanes);
      out[v] = narrowed_words(a) | (narrowed_words(b) << 16);
    }
  }
}

// `rows` rows of `stride` as steps of words, `out` past the last of them.
template <typename P, typename T>
Words* pack(const T* from, int64_t stride, int64_t rows, int64_t columns, float scale, Words* out) {
  for (int64_t r = 0; r < rows; r += P::kPack, out += kTileVectors) {
    const T* even = from + r * stride;
    pack_step<P>(even, r + 1 < rows ? even + stride : nullptr, columns, scale, out);
  }
  return out;
}

template <typename P>
constexpr int64_t words_of(int64_t values) { return (values + P::kPack - 1) / P::kPack; }

}  // namespace mmsada
