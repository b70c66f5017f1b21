#pragma once
// Rounding to int8 with a scale: values / scale, where scale = the largest magnitude / 127.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/math.cuh"

namespace longlive {
// |x| as an integer that orders as magnitudes do, with infinity and NaN above all numbers: a maximum keeps them.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

// The scale of values whose largest magnitude is known. Infinity and NaN make it infinity and NaN, and all values 0.
struct RowScale {
  float scale, inverse;

  __device__ explicit RowScale(uint32_t largest) {
    const float amax = __uint_as_float(largest);
    scale = __fdiv_rn(amax, 127.f);
    inverse = amax > 0 ? __fdiv_rn(127.f, amax) : 0;
  }
  __device__ int round(float x) const { return __float2int_rn(x * inverse); }
  // Four int8, the first in the lowest byte.
  __device__ uint32_t pack(float a, float b, float c, float d) const {
    return pack_int8(round(a), round(b), pack_int8(round(c), round(d), 0));
  }
};

// The same of halves, in pairs. The inverse is a half: the scale is what that stands for, and at least 2^-15.
struct HalfScale {
  float scale;
  __half2 inverse;

  __device__ explicit HalfScale(__half2 largest) {
    const float2 both = __half22float2(largest);
    const float amax = __uint_as_float(max(magnitude(both.x), magnitude(both.y)));
    const __half half = __float2half_rn(fminf(__fdividef(127.f, amax), 32768.f));
    inverse = __half2half2(half);
    scale = amax <= 65504.f ? __fdividef(1.f, __half2float(half)) : amax * INFINITY;
  }
  // Four int8, the first in the lowest byte. 1536 + n, for a small integer n, has n's low byte as its own.
  __device__ uint32_t pack(__half2 a, __half2 b) const {
    const __half2 magic = __float2half2_rn(1536.f);
    const __half2 x = __hfma2(a, inverse, magic), y = __hfma2(b, inverse, magic);
    return __byte_perm(reinterpret_cast<const uint32_t&>(x), reinterpret_cast<const uint32_t&>(y), 0x6420);
  }
};
}  // namespace longlive
