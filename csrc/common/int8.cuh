#pragma once
// Rounding to int8 with a scale: values / scale, where scale = the largest magnitude / 127.
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
}  // namespace longlive
