// The backward of the adaptation heads: one pass over spans of features, in which every feature and every weight is
// read once and every gradient is written once.
#pragma once

#include "heads.h"

namespace mmsada::heads {

// What a gradient is multiplied by: the incoming one of its term, and behind the reversal -lambda times it.
struct Scales {
  float classified, joint;
  std::vector<float> domain;  // of each stream
  float reversal;
};

// Slopes kept by the forward: of the pairs, and of the logits (N, K).
template <typename P>
struct Kept {
  std::vector<Slopes<P>> pairs;
  const float* logits;
};

// Where gradients go; null where nobody wants them.
template <typename X>
struct Gradients {
  std::vector<X*> features;
  std::vector<float*> classifier;  // (K, D) of each stream
  std::vector<float*> weight1;     // of each pair
};

// One span of columns of one stream.
template <typename P, typename X>
class Span {
 public:
  Span(const Shape& shape, const Kept<P>& kept, const Scales& scales, const Gradients<X>& to, int64_t s, int64_t first)
      : shape_(shape), kept_(kept), scales_(scales), to_(to), s_(s), first_(first),
        columns_(std::min(kSpan, shape.streams[s].features - first)), width_(shape.streams[s].features) {}

  // Gradients of the span's features: by the logits, by the discriminator, by the correspondence head.
  void spread(Packed* memory) const {
    const Pair &own = shape_.pairs[s_], &joint = shape_.joint();
    const float push = -scales_.reversal * scales_.domain[s_];
    const Packed *own_weights = memory, *joint_weights =
        pack<P>(own.weight1 + first_, own.inputs, own.hidden, columns_, push, memory);
    pack<P>(joint.weight1 + shape_.streams[s_].offset + first_, joint.inputs, joint.hidden, columns_, scales_.joint,
            const_cast<Packed*>(joint_weights));
    for_tiles(shape_.clips, [&](int64_t n, auto count) {
      constexpr int rows = decltype(count)::value;
      Tile<rows> sums;
      from_logits<rows>(n, sums);
      const auto add = [&](int64_t pair, const Packed* weights) {
        const int64_t words = words_of<P>(shape_.pairs[pair].hidden);
        const auto* at = reinterpret_cast<const uint32_t*>(kept_.pairs[pair].rows) + n * words;
        outer_products<P, rows>({at, words, 1}, weights, words, sums);
      };
      add(s_, own_weights);
      add(std::ssize(shape_.streams), joint_weights);
      for (int i = 0; i < rows; ++i) write(to_.features[s_] + (n + i) * width_ + first_, sums[i], 1.0f);
    });
  }

  // Gradients of the span's columns of all weights.
  void gather(const X* features, Packed* memory) const {
    pack<P>(features + first_, width_, shape_.clips, columns_, 1.0f, memory);
    const int64_t joint = std::ssize(shape_.streams);
    weights_of(s_, memory, scales_.domain[s_], to_.weight1[s_] + first_);
    weights_of(joint, memory, scales_.joint, to_.weight1[joint] + shape_.streams[s_].offset + first_);
    for (int64_t n = 0; n < shape_.clips; ++n) {
      Packed* out = memory + n * kTileVectors;
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t lanes = lanes_of(columns_, v), from = n * width_ + first_ + v * kWidth;
        out[v] = (Packed)(load_wide(features + from, lanes) * load_wide(shape_.streams[s_].dropout + from, lanes));
      }
    }
    for_tiles(shape_.logits, [&](int64_t k, auto count) {
      constexpr int rows = decltype(count)::value;
      Tile<rows> sums = {};
      const auto* at = reinterpret_cast<const uint32_t*>(kept_.logits) + k;
      outer_products<Single, rows>({at, 1, shape_.logits}, memory, shape_.clips, sums);
      for (int i = 0; i < rows; ++i) {
        write(to_.classifier[s_] + (k + i) * width_ + first_, sums[i], scales_.classified);
      }
    });
  }

  // Vectors that `memory` must hold.
  static int64_t room(const Shape& shape) {
    int64_t rows = shape.clips;
    for (int64_t s = 0; s < std::ssize(shape.streams); ++s) rows = std::max(rows, shape.hidden(s) + 2);
    return rows * kTileVectors;
  }

 private:
  template <int rows>
  inline __attribute__((always_inline)) void from_logits(int64_t n, Tile<rows>& sums) const {
    const Stream& stream = shape_.streams[s_];
    for (int i = 0; i < rows; ++i) {
      for (int v = 0; v < kTileVectors; ++v) sums[i][v] = Sums{};
    }
    for (int64_t k = 0; k < shape_.logits; ++k) {
      for (int v = 0; v < kTileVectors; ++v) {
        const Sums weight = load_wide(stream.classifier + k * width_ + first_ + v * kWidth, lanes_of(columns_, v));
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) sums[i][v] += kept_.logits[(n + i) * shape_.logits + k] * weight;
      }
    }
    for (int i = 0; i < rows; ++i) {
      for (int v = 0; v < kTileVectors; ++v) {
        const float* dropout = stream.dropout + (n + i) * width_ + first_ + v * kWidth;
        sums[i][v] *= scales_.classified * load_wide(dropout, lanes_of(columns_, v));
      }
    }
  }

  void weights_of(int64_t pair, const Packed* features, float scale, float* out) const {
    const Pair& head = shape_.pairs[pair];
    const Slopes<P>& slopes = kept_.pairs[pair];
    const auto* at = reinterpret_cast<const uint32_t*>(P::kPack == 1 ? slopes.rows : slopes.pairs);
    for_tiles(head.hidden, [&](int64_t h, auto count) {
      constexpr int rows = decltype(count)::value;
      Tile<rows> sums = {};
      outer_products<P, rows>({at + h, 1, head.hidden}, features, words_of<P>(shape_.clips), sums);
      for (int i = 0; i < rows; ++i) write(out + (h + i) * head.inputs, sums[i], scale);
    });
  }

  template <typename T>
  inline __attribute__((always_inline)) void write(T* out, const Sums (&sums)[kTileVectors], float scale) const {
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t lanes = lanes_of(columns_, v);
      if (lanes > 0) store_wide(out + v * kWidth, sums[v] * scale, lanes);
    }
  }

  const Shape& shape_;
  const Kept<P>& kept_;
  const Scales& scales_;
  const Gradients<X>& to_;
  const int64_t s_, first_, columns_, width_;
};

template <typename P, typename X>
void differentiate(const Shape& shape, const std::vector<const X*>& features, const Kept<P>& kept, const Scales& scales,
                   const Gradients<X>& to) {
  std::vector<std::pair<int64_t, int64_t>> tasks;
  for (int64_t s = 0; s < std::ssize(shape.streams); ++s) {
    for (int64_t first = 0; first < shape.streams[s].features; first += kSpan) tasks.emplace_back(s, first);
  }
  at::parallel_for(0, std::ssize(tasks), 1, [&](int64_t begin, int64_t end) {
    Buffer memory = buffer(Span<P, X>::room(shape));
    for (int64_t i = begin; i < end; ++i) {
      const auto [s, first] = tasks[i];
      const Span<P, X> span(shape, kept, scales, to, s, first);
      if (!to.features.empty()) span.spread(memory.get());
      if (!to.weight1.empty()) span.gather(features[s], memory.get());
    }
  });
}

}  // namespace mmsada::heads
