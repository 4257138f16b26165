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

constexpr int64_t kClipBlock = 64, kHiddenBlock = 16, kLogitBlock = 8;

// The first products: `projected[s]`, (N, hidden(s)), of stream s before bias and ReLU, and `logits`, (N, K), of all
// streams together. `features` are in the type of products, `exact` as they came.
template <typename P, typename X>
class FirstLayers {
 public:
  FirstLayers(const Shape& shape, std::vector<const typename P::Value*> features, std::vector<const X*> exact,
              std::vector<float*> projected, float* logits)
      : shape_(shape), features_(std::move(features)), exact_(std::move(exact)), projected_(std::move(projected)),
        logits_(logits) {
    for (const Stream& stream : shape.streams) widest_ = std::max(widest_, (stream.features + 31) / 32 * 32);
  }

  // All in one parallel region.
  void run() const {
    struct Task {
      int64_t stream, clip, hidden;  // stream -1: logits
    };
    std::vector<Task> tasks;
    for (int64_t s = 0; s < std::ssize(shape_.streams); ++s) {
      for (int64_t n = 0; n < shape_.clips; n += kClipBlock) {
        for (int64_t h = 0; h < shape_.hidden(s); h += kHiddenBlock) tasks.push_back({s, n, h});
      }
      // Logits in the middle: threads get equal numbers of tasks in this order.
      for (int64_t n = 0; s == 0 && n < shape_.clips; n += kLogitBlock) tasks.push_back({-1, n, 0});
    }
    at::parallel_for(0, std::ssize(tasks), 1, [&](int64_t begin, int64_t end) {
      Buffer memory = buffer(kHiddenBlock * widest_ / kWidth);
      for (int64_t i = begin; i < end; ++i) {
        if (tasks[i].stream < 0) {
          classify(tasks[i].clip, memory.get());
        } else {
          project(tasks[i].stream, tasks[i].clip, tasks[i].hidden, memory.get());
        }
      }
    });
  }

 private:
  void project(int64_t s, int64_t n, int64_t h, Packed* memory) const {
    using Value = typename P::Value;
    const int64_t width = shape_.streams[s].features, all = shape_.hidden(s), units = std::min(kHiddenBlock, all - h);
    const Value* rows[kHiddenBlock];
    for (int64_t j = 0; j < units; ++j) {
      const float* row = shape_.row(s, h + j);
      if constexpr (P::kPack == 1) {
        rows[j] = row;
      } else {
        Value* to = reinterpret_cast<Value*>(memory) + j * widest_;
        for (int64_t d = 0; d < width; d += kWidth) {
          store_wide(to + d, load_wide(row + d, lanes_of(width - d, 0)), kWidth);
        }
        rows[j] = to;
      }
    }
    inner_products<P>(features_[s] + n * width, width, std::min(kClipBlock, shape_.clips - n), rows, units, width,
                      projected_[s] + n * all + h, all);
  }

  // Of features times dropout; fp32 products in either precision.
  void classify(int64_t n, Packed* memory) const {
    const int64_t K = shape_.logits, clips = std::min(kLogitBlock, shape_.clips - n);
    float *dropped = reinterpret_cast<float*>(memory), *logits = logits_ + n * K;
    std::vector<float> part(clips * K);
    std::vector<const float*> rows(K);
    for (int64_t s = 0; s < std::ssize(shape_.streams); ++s) {
      const Stream& stream = shape_.streams[s];
      const int64_t width = stream.features;
      for (int64_t i = 0; i < clips; ++i) {
        const int64_t from = (n + i) * width;
        for (int64_t d = 0; d < width; d += kWidth) {
          const int64_t lanes = lanes_of(width - d, 0);
          const Sums x = load_wide(exact_[s] + from + d, lanes) * load_wide(stream.dropout + from + d, lanes);
          store_wide(dropped + i * widest_ + d, x, kWidth);
        }
      }
      for (int64_t k = 0; k < K; ++k) rows[k] = stream.classifier + k * width;
      inner_products<Single>(dropped, widest_, clips, rows.data(), K, width, part.data(), K);
      for (int64_t i = 0; i < clips * K; ++i) {
        const float sum = part[i] + stream.bias[i % K];
        logits[i] = s == 0 ? sum : logits[i] + sum;
      }
    }
  }

  const Shape& shape_;
  const std::vector<const typename P::Value*> features_;
  const std::vector<const X*> exact_;
  const std::vector<float*> projected_;
  float* const logits_;
  int64_t widest_ = 0;
};

struct Scored {
  double loss = 0, right = 0;
};

constexpr int64_t kIgnored = -100;  // the label that PyTorch's cross-entropy leaves out

// Weighted cross-entropy of one row; `slope` becomes its derivative by each of the `classes` logits.
inline void score_row(const float* logits, int64_t classes, int64_t label, double weight, Scored& scored,
                      float* slope) {
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

// Slopes of one head's loss. `rows`: by the hidden units before the ReLU, (N, words_of(H)) words; `pairs`, for bf16:
// the same with clips in pairs, (N / 2, H) words; `small`: by bias1 (H), weight2 (2, H) and bias2 (2).
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
