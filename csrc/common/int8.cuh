#pragma once
// Rounding to int8 with a scale: values / scale, where scale = the largest magnitude / 127.
#include <cuda_runtime.h>

#include <cstdint>

#include "common/math.cuh"

namespace longlive {
// |x| as an integer that orders as magnitudes do, with infinity and NaN above all numbers: a maximum keeps them.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

// The scale of values whose largest magnitude is known. Infinity and NaN make it infinity and NaN, and all values 0; so
// do magnitudes below 2^-100, with a scale of 0: the inverse stays finite.
struct RowScale {
  static constexpr uint32_t kSmallest = (127 - 100) << 23;
  float scale, inverse;

  __device__ explicit RowScale(uint32_t largest) {
    const float amax = __uint_as_float(largest < kSmallest ? 0 : largest);
    scale = __fdiv_rn(amax, 127.f);
    inverse = amax > 0 ? __fdiv_rn(127.f, amax) : 0;
  }
  __device__ int round(float x) const { return __float2int_rn(x * inverse); }
  // Four int8, the first in the lowest byte.
  __device__ uint32_t pack(float a, float b, float c, float d) const {
    return pack_int8(round(a), round(b), pack_int8(round(c), round(d), 0));
  }
};

// The two below take the elements of a Vec, or an array of as many.
template <class V>
constexpr int kSizeOf = V::kSize;
template <int kSize>
constexpr int kSizeOf<float[kSize]> = kSize;

// The largest magnitude.
template <class V>
__device__ uint32_t largest_magnitude(const V& x) {
  uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < kSizeOf<V>; ++j) largest = max(largest, magnitude(x[j]));
  return largest;
}

// Stores them in one piece; they are a multiple of four.
template <class V>
__device__ void store_int8(int8_t* to, const V& x, const RowScale& scale) {
  struct alignas(kSizeOf<V>) Words {
    uint32_t word[kSizeOf<V> / 4];
  } words;
#pragma unroll
  for (int i = 0; i < kSizeOf<V> / 4; ++i)
    words.word[i] = scale.pack(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
  *reinterpret_cast<Words*>(to) = words;
}
}  // namespace longlive
