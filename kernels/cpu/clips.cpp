// Decoded crops to clips as the first layer reads them, in one pass over memory: resize to the output side, mirror,
// normalise, and weave u and v together.
//
// Linear interpolation with centres at half a pixel and no antialiasing, as `fn.resize(antialias=False)` and OpenCV's
// INTER_LINEAR. Every line of a crop is resized across once and kept while lines of the output need it.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "vec.h"

namespace mmsada {
namespace {

constexpr float kScale = 1.0f / 128, kBias = -1.0f;  // (x - 128) / 128: byte 128 is exactly 0 (spec 4.5)
constexpr int64_t kSpan = 2 * kLanes;                // values that one shuffle can choose from

// Where output place `o` lies between two places of an axis of `in`: the lower one, the upper one, and how far.
struct Between {
  int64_t low, high;
  float share;

  Between(int64_t o, int64_t in, int64_t out) {
    const float at = (static_cast<float>(o) + 0.5f) * static_cast<float>(in) / static_cast<float>(out) - 0.5f;
    const float inside = std::clamp(at, 0.0f, static_cast<float>(in - 1));
    low = static_cast<int64_t>(inside);
    high = std::min(low + 1, in - 1);
    share = inside - static_cast<float>(low);
  }
};

// How one line of `in` pixels becomes one of `out`: for sixteen values at a time where in the line they come from.
class Across {
 public:
  Across(int64_t in, int64_t out, int64_t channels, bool flips)
      : values_(in * channels), vectors_((out * channels + kLanes - 1) / kLanes), taps_(vectors_) {
    for (int64_t v = 0; v < vectors_; ++v) {
      std::array<int64_t, kLanes> low, high;
      Taps& taps = taps_[v];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t value = std::min(v * kLanes + i, out * channels - 1), pixel = value / channels;
        const Between at(flips ? out - 1 - pixel : pixel, in, out);
        low[i] = at.low * channels + value % channels;
        high[i] = at.high * channels + value % channels;
        taps.share[i] = at.share;
      }
      const auto [least, most] = std::minmax({*std::min_element(low.begin(), low.end()),
                                              *std::max_element(high.begin(), high.end())});
      taps.first = std::clamp<int64_t>(least, 0, std::max<int64_t>(0, values_ - kSpan));
      shuffles_ = shuffles_ && most - taps.first < kSpan;
      for (int64_t i = 0; i < kLanes; ++i) {
        taps.low[i] = static_cast<int32_t>(low[i] - taps.first);
        taps.high[i] = static_cast<int32_t>(high[i] - taps.first);
      }
    }
    shuffles_ = shuffles_ && values_ >= kSpan;
  }

  int64_t padded() const { return vectors_ * kLanes; }

  // `line` has `padded()` places; those beyond the output repeat its last value. `wide` has room for the pixels.
  void resize(const uint8_t* pixels, float* wide, float* line) const {
#ifdef __AVX512F__
    if (shuffles_) return shuffle(pixels, line);
#endif
    std::copy(pixels, pixels + values_, wide);
    for (int64_t v = 0; v < vectors_; ++v) {
      const Taps& taps = taps_[v];
      const float* from = wide + taps.first;
      for (int64_t i = 0; i < kLanes; ++i) {
        const float low = from[taps.low[i]], high = from[taps.high[i]];
        line[v * kLanes + i] = low + taps.share[i] * (high - low);
      }
    }
  }

 private:
  struct Taps {
    Ints low, high;
    Floats share;
    int64_t first;
  };

#ifdef __AVX512F__
  void shuffle(const uint8_t* pixels, float* line) const {
    for (int64_t v = 0; v < vectors_; ++v) {
      const Taps& taps = taps_[v];
      const __m512 a = (__m512)widened(pixels + taps.first), b = (__m512)widened(pixels + taps.first + kLanes);
      const Floats low = (Floats)_mm512_permutex2var_ps(a, (__m512i)taps.low, b);
      const Floats high = (Floats)_mm512_permutex2var_ps(a, (__m512i)taps.high, b);
      store(line + v * kLanes, low + taps.share * (high - low), Full{});
    }
  }

  static Floats widened(const uint8_t* p) {
    // In steps that are one instruction each; GCC 12 takes one of bytes to integers apart into sixteen.
    const auto integers = __builtin_convertvector(__builtin_convertvector(load_raw<Bytes>(p, Full{}), Halves), Ints);
    return __builtin_convertvector(integers, Floats);
  }
#endif

  int64_t values_, vectors_;
  std::vector<Taps> taps_;
  bool shuffles_ = true;
};

// The two lines of a crop that an output line lies between, resized across.
class Lines {
 public:
  Lines(const Across& across, const uint8_t* image, int64_t stride)
      : across_(across), image_(image), stride_(stride), memory_(2 * across.padded() + stride) {}

  const float* line(int64_t y) {
    const int64_t slot = y & 1;
    float* memory = memory_.data() + slot * across_.padded();
    if (held_[slot] != y) across_.resize(image_ + y * stride_, memory_.data() + 2 * across_.padded(), memory);
    held_[slot] = y;
    return memory;
  }

 private:
  const Across& across_;
  const uint8_t* image_;
  int64_t stride_;
  std::vector<float> memory_;
  int64_t held_[2] = {-1, -1};
};

// Memory of clips whose tensors are gone, for the next ones: fresh pages cost more than the work (the kernel clears
// each at its first touch).
class Blocks {
 public:
  // Never destroyed: a tensor may outlive every static.
  static Blocks& shared() {
    static auto* blocks = new Blocks;
    return *blocks;
  }

  void* take(size_t size) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = std::find_if(free_.begin(), free_.end(), [&](const Block& b) { return b.size == size; });
      if (found != free_.end()) {
        void* memory = found->memory;
        free_.erase(found);
        return memory;
      }
    }
    void* memory = std::aligned_alloc(kPage, (size + kPage - 1) / kPage * kPage);
    TORCH_CHECK(memory != nullptr, "make_clips: no memory for ", size, " bytes of clips");
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return memory;
  }

  void give(void* memory, size_t size) {
    const std::lock_guard lock(mutex_);
    free_.push_back({memory, size});
    if (free_.size() <= kKept) return;
    std::free(free_.front().memory);
    free_.pop_front();
  }

 private:
  struct Block {
    void* memory;
    size_t size;
  };
  static constexpr size_t kPage = 2 << 20, kKept = 4;  // two streams, of the batch before and of the one before that

  std::mutex mutex_;
  std::deque<Block> free_;
};

at::Tensor empty_clips(at::IntArrayRef sizes) {
  const size_t bytes = std::max<size_t>(1, c10::multiply_integers(sizes)) * sizeof(float);
  void* memory = Blocks::shared().take(bytes);
  const auto give = [bytes](void* p) { Blocks::shared().give(p, bytes); };
  return at::from_blob(memory, sizes, give, at::TensorOptions(at::kFloat));
}

struct Shape {
  int64_t frames, planes, channels, side;
};

// u and v of one line by turns; a mirrored u changes its sign: ((255 - u) - 128) / 128.
void weave(Lines& u, Lines& v, const Between& at, bool flips, int64_t side, float* __restrict out) {
  const float *u0 = u.line(at.low), *u1 = u.line(at.high), *v0 = v.line(at.low), *v1 = v.line(at.high);
  const float scale = flips ? -kScale : kScale, bias = flips ? 127.0f / 128 : kBias, share = at.share;
  for (int64_t x = 0; x < side; ++x) {
    out[2 * x] = (u0[x] + share * (u1[x] - u0[x])) * scale + bias;
    out[2 * x + 1] = (v0[x] + share * (v1[x] - v0[x])) * kScale + kBias;
  }
}

void copy(Lines& image, const Between& at, int64_t values, float* __restrict out) {
  const float *low = image.line(at.low), *high = image.line(at.high);
  const float share = at.share;
  for (int64_t x = 0; x < values; ++x) out[x] = (low[x] + share * (high[x] - low[x])) * kScale + kBias;
}

void frame(const uint8_t* bytes, int64_t height, int64_t width, bool flips, const Across& across, const Shape& shape,
           float* out) {
  const int64_t stride = width * shape.channels, values = shape.side * shape.channels;
  Lines first(across, bytes, stride), second(across, bytes + height * stride, stride);
  for (int64_t y = 0; y < shape.side; ++y) {
    const Between at(y, height, shape.side);
    if (shape.planes == 2) {
      weave(first, second, at, flips, shape.side, out + 2 * y * values);
    } else {
      copy(first, at, values, out + y * values);
    }
  }
}

at::Tensor make_clips(const at::Tensor& bytes, const at::Tensor& size_N2, const at::Tensor& flip_N, int64_t frames,
                      int64_t planes, int64_t channels, int64_t side) {
  const int64_t clips = size_N2.size(0);
  TORCH_CHECK(bytes.scalar_type() == at::kByte && bytes.dim() == 1 && bytes.is_contiguous(),
              "bytes: expected flat uint8");
  TORCH_CHECK(size_N2.scalar_type() == at::kLong && size_N2.dim() == 2 && size_N2.size(1) == 2 &&
                  size_N2.is_contiguous(),
              "size_N2: expected (N, 2) int64");
  TORCH_CHECK(flip_N.scalar_type() == at::kBool && flip_N.dim() == 1 && flip_N.size(0) == clips &&
                  flip_N.is_contiguous(),
              "flip_N: expected (N,) bool");
  TORCH_CHECK(frames > 0 && side > 0 && channels > 0 && (planes == 1 || (planes == 2 && channels == 1)),
              "make_clips: expected one image a frame, or two of one channel");
  const auto* sizes = size_N2.const_data_ptr<int64_t>();
  const auto* flips = flip_N.const_data_ptr<bool>();
  const Shape shape{frames, planes, channels, side};
  std::vector<Across> across;
  std::vector<int64_t> begin = {0};
  for (int64_t n = 0; n < clips; ++n) {
    TORCH_CHECK(sizes[2 * n] > 0 && sizes[2 * n + 1] > 0, "size_N2: expected positive sizes");
    across.emplace_back(sizes[2 * n + 1], side, channels, flips[n]);
    begin.push_back(begin.back() + frames * planes * channels * sizes[2 * n] * sizes[2 * n + 1]);
  }
  TORCH_CHECK(begin.back() == bytes.numel(), "bytes: ", bytes.numel(), " of them, the sizes say ", begin.back());
  auto clips_NTHWC = empty_clips({clips, frames, side, side, planes * channels});
  const auto* from = bytes.const_data_ptr<uint8_t>();
  auto* to = clips_NTHWC.mutable_data_ptr<float>();
  const int64_t out_frame = side * side * planes * channels;
  at::parallel_for(0, clips * frames, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / frames, height = sizes[2 * n], width = sizes[2 * n + 1];
      const int64_t in_frame = planes * channels * height * width;
      frame(from + begin[n] + i % frames * in_frame, height, width, flips[n], across[n], shape, to + i * out_frame);
    }
  });
  return clips_NTHWC;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsada, m) {
  m.def(
      "make_clips(Tensor bytes, Tensor size_N2, Tensor flip_N, int frames, int planes, int channels, int side) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(mmsada, CPU, m) { m.impl("make_clips", make_clips); }

}  // namespace mmsada
