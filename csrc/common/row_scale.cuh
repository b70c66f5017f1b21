#pragma once
// Quantising float32 to int8: the largest magnitude of a group, its scale, and the rounding (kernels/quantize.py).
#include <cuda_runtime.h>

#include <cstdint>

namespace longlive {
// Elements of a Vec, or of an array.
template <class V>
constexpr int kSizeOf = V::kSize;
template <int kSize>
constexpr int kSizeOf<float[kSize]> = kSize;

// The largest |x| as an integer: they order as magnitudes do, with infinity and NaN above all numbers.
template <class V>
__device__ uint32_t largest_magnitude(const V& x) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kSizeOf<V>; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7fffffffu);
  return largest;
}

// The scale of a group whose largest magnitude is known. Infinity and NaN make it infinity and NaN; magnitudes below
// 2^-100 make it 0, and the inverse stays finite.
struct RowScale {
  static constexpr uint32_t kSmallest = (127 - 100) << 23;
  float scale, inverse;

  __device__ explicit RowScale(uint32_t largest) {
    const float amax = __uint_as_float(largest < kSmallest ? 0 : largest);
    scale = __fdiv_rn(amax, 127.f);
    inverse = amax > 0 ? __fdiv_rn(127.f, amax) : 0;
  }

  // x / scale, rounded to an int8 in the lowest byte: 1.5 * 2^23 leaves a float32 no bits below 1. The product is
  // rounded before, never fused with the sum.
  __device__ uint32_t round(float x) const { return __float_as_uint(__fmul_rn(x, inverse) + 12582912.f); }
  // Four of them, the first in the lowest byte.
  __device__ uint32_t pack(float a, float b, float c, float d) const {
    return __byte_perm(__byte_perm(round(a), round(b), 0x0040), __byte_perm(round(c), round(d), 0x0040), 0x5410);
  }
};

// Stores the elements of x, a multiple of four, in one piece.
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
