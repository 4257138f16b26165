// The adaptation heads of a step (`reference.adaptation_heads`), as passes over plain memory.
//
// N clips, S streams of D features, K logits, heads of H hidden units: one discriminator a stream, then the
// correspondence head on all of them. Losses are scalars, so the forward forms their slopes by every hidden unit and
// logit; the backward scales those by what comes in. Every output is summed by one thread in one order: the result does
// not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "products.h"

namespace mmsada::heads {

// Two layers; the rows of weight1 are as long as the features of the head.
struct Pair {
  const float *weight1, *bias1, *weight2, *bias2;
  int64_t hidden, inputs;
};

struct Stream {
  int64_t features, offset;  // where its features begin in the rows of the correspondence head
  const float* dropout;      // (N, D)
  const float *classifier, *bias;
};

struct Shape {
  int64_t clips, logits, classes;
  std::vector<Stream> streams;
  std::vector<Pair> pairs;  // a discriminator for each stream, the correspondence head

  const Pair& joint() const { return pairs.back(); }
  // Hidden units that look at stream s: its discriminator's, then the correspondence head's.
  int64_t hidden(int64_t s) const { return pairs[s].hidden + joint().hidden; }
  const float* row(int64_t s, int64_t h) const {
    const Pair& own = pairs[s];
    if (h < own.hidden) return own.weight1 + h * own.inputs;
    return joint().weight1 + (h - own.hidden) * joint().inputs + streams[s].offset;
  }
};

constexpr int64_t kClipBlock = 64, kHiddenBlock = 16;

// Hidden units of every stream before bias and ReLU: projected[s] is (N, hidden(s)).
template <typename P>
void project(const Shape& shape, const std::vector<const typename P::Value*>& features,
             const std::vector<float*>& projected) {
  using Value = typename P::Value;
  struct Task {
    int64_t stream, clip, hidden;
  };
  std::vector<Task> tasks;
  int64_t widest = 0;
  for (int64_t s = 0; s < std::ssize(shape.streams); ++s) {
    widest = std::max(widest, shape.streams[s].features);
    for (int64_t n = 0; n < shape.clips; n += kClipBlock) {
      for (int64_t h = 0; h < shape.hidden(s); h += kHiddenBlock) tasks.push_back({s, n, h});
    }
  }
  const int64_t stride = (widest + 31) / 32 * 32;
  at::parallel_for(0, std::ssize(tasks), 1, [&](int64_t begin, int64_t end) {
    Buffer memory = buffer(P::kPack == 2 ? kHiddenBlock * stride / (2 * kWidth) : 0);
    Value* narrow = reinterpret_cast<Value*>(memory.get());
    for (int64_t i = begin; i < end; ++i) {
      const auto [s, n, h] = tasks[i];
      const int64_t width = shape.streams[s].features, all = shape.hidden(s), units = std::min(kHiddenBlock, all - h);
      const Value* rows[kHiddenBlock];
      for (int64_t j = 0; j < units; ++j) {
        const float* row = shape.row(s, h + j);
        if constexpr (P::kPack == 1) {
          rows[j] = row;
        } else {
          Value* to = narrow + j * stride;
          for (int64_t d = 0; d < width; d += kWidth) {
            store_wide(to + d, load_wide(row + d, lanes_of(width - d, 0)), kWidth);
          }
          rows[j] = to;
        }
      }
      inner_products<P>(features[s] + n * width, width, std::min(kClipBlock, shape.clips - n), rows, units, width,
                        projected[s] + n * all + h, all);
    }
  });
}

// Logits of all streams together, (N, K), of features times dropout; fp32 products in either precision.
template <typename X>
void classify(const Shape& shape, const std::vector<const X*>& features, float* logits) {
  constexpr int64_t block = 8;
  const int64_t K = shape.logits;
  at::parallel_for(0, (shape.clips + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    int64_t widest = 0;
    for (const Stream& stream : shape.streams) widest = std::max(widest, stream.features);
    const int64_t stride = (widest + kWidth - 1) / kWidth * kWidth;
    Buffer memory = buffer(block * stride / kWidth);
    float* dropped = reinterpret_cast<float*>(memory.get());
    std::vector<float> part(block * K);
    std::vector<const float*> rows(K);
    for (int64_t n = begin * block; n < std::min(end * block, shape.clips); n += block) {
      const int64_t clips = std::min(block, shape.clips - n);
      for (int64_t s = 0; s < std::ssize(shape.streams); ++s) {
        const Stream& stream = shape.streams[s];
        const int64_t width = stream.features;
        for (int64_t i = 0; i < clips; ++i) {
          const int64_t from = (n + i) * width;
          for (int64_t d = 0; d < width; d += kWidth) {
            const int64_t lanes = lanes_of(width - d, 0);
            const Sums x = load_wide(features[s] + from + d, lanes) * load_wide(stream.dropout + from + d, lanes);
            store_wide(dropped + i * stride + d, x, kWidth);
          }
        }
        for (int64_t k = 0; k < K; ++k) rows[k] = stream.classifier + k * width;
        inner_products<Single>(dropped, stride, clips, rows.data(), K, width, part.data(), K);
        for (int64_t i = 0; i < clips * K; ++i) {
          const float sum = part[i] + stream.bias[i % K];
          logits[n * K + i] = s == 0 ? sum : logits[n * K + i] + sum;
        }
      }
    }
  });
}

struct Scored {
  double loss = 0, right = 0;
};

constexpr int64_t kIgnored = -100;  // the label that PyTorch's cross-entropy leaves out

// Weighted cross-entropy of one row; `slope` becomes its derivative by each of the `classes` logits.
inline void score_row(const float* logits, int64_t classes, int64_t label, double weight, Scored& scored, float* slope) {
  std::fill_n(slope, classes, 0.0f);
  if (label == kIgnored) return;
  const float* best = std::max_element(logits, logits + classes);
  float others = 0;
  for (int64_t k = 0; k < classes; ++k) {
    slope[k] = std::exp(logits[k] - *best);
    if (k != label) others += slope[k];
  }
  const float total = others + slope[label];
  slope[label] = -others;  // p - 1, without the cancellation
  for (int64_t k = 0; k < classes; ++k) slope[k] *= static_cast<float>(weight) / total;
  scored.loss += weight * (std::log(total) - (logits[label] - *best));
  scored.right += weight * (best - logits == label);
}

inline Scored score_classes(const Shape& shape, const float* logits, const int64_t* labels, const double* weights,
                            float* slopes, float* bias_slopes) {
  Scored scored;
  const int64_t K = shape.logits;
  std::fill_n(bias_slopes, K, 0.0f);
  for (int64_t n = 0; n < shape.clips; ++n) {
    float* slope = slopes + n * K;
    std::fill_n(slope, K, 0.0f);
    score_row(logits + n * K, shape.classes, labels[n], weights[n], scored, slope);
    for (int64_t k = 0; k < K; ++k) bias_slopes[k] += slope[k];
  }
  return scored;
}

// Slopes of one head's loss. `rows`: by the hidden units before the ReLU, (N, words_of(H)) words; `pairs`, for bf16: the
// same with clips in pairs, (N / 2, H) words; `small`: by bias1 (H), weight2 (2, H) and bias2 (2).
template <typename P>
struct Slopes {
  typename P::Value *rows, *pairs;
  float* small;
};

// One two-layer head behind its first product, of which `parts` hold a share each (first value, stride of a clip).
template <typename P>
Scored score_pair(const Pair& head, int64_t clips, const std::vector<std::pair<const float*, int64_t>>& parts,
                  const int64_t* labels, const double* weights, const Slopes<P>& slopes) {
  using Value = typename P::Value;
  const int64_t H = head.hidden, stride = words_of<P>(H) * P::kPack;
  std::vector<float> hidden(H), slope(H);
  float *bias1 = slopes.small, *weight2 = bias1 + H, *bias2 = weight2 + 2 * H;
  std::fill_n(slopes.small, 3 * H + 2, 0.0f);
  Scored scored;
  for (int64_t n = 0; n < clips; ++n) {
    Floats sum0{}, sum1{};
    for_lanes<kLanes>(H, [&](int64_t h, auto lanes) {
      Floats x = load(head.bias1 + h, lanes);
      for (const auto& [first, step] : parts) x += load(first + n * step + h, lanes);
      x = relu(x);
      store(hidden.data() + h, x, lanes);
      sum0 += x * load(head.weight2 + h, lanes);
      sum1 += x * load(head.weight2 + H + h, lanes);
    });
    float logits[2] = {head.bias2[0], head.bias2[1]}, by[2];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      logits[0] += sum0[lane];
      logits[1] += sum1[lane];
    }
    score_row(logits, 2, labels[n], weights[n], scored, by);
    bias2[0] += by[0];
    bias2[1] += by[1];
    for_lanes<kLanes>(H, [&](int64_t h, auto lanes) {
      const Floats x = load(hidden.data() + h, lanes);
      const Floats through = by[0] * load(head.weight2 + h, lanes) + by[1] * load(head.weight2 + H + h, lanes);
      const Floats passed = (x <= 0) ? Floats{} : through;  // as PyTorch, a NaN lets it through
      store(bias1 + h, load(bias1 + h, lanes) + passed, lanes);
      store(weight2 + h, load(weight2 + h, lanes) + by[0] * x, lanes);
      store(weight2 + H + h, load(weight2 + H + h, lanes) + by[1] * x, lanes);
      store(slopes.rows + n * stride + h, passed, lanes);
    });
    if (stride > H) slopes.rows[n * stride + H] = Value(0.0f);
  }
  if constexpr (P::kPack == 2) {
    for (int64_t n = 0; n < clips; n += 2) {
      const Value *even = slopes.rows + n * stride, *odd = even + stride;
      Value* to = slopes.pairs + n * H;
      for (int64_t h = 0; h < H; ++h) {
        to[2 * h] = even[h];
        to[2 * h + 1] = n + 1 < clips ? odd[h] : Value(0.0f);
      }
    }
  }
  return scored;
}

}  // namespace mmsada::heads
