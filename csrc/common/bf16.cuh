#pragma once
// bfloat16: the upper half of a float32. A pair shares a 32-bit register, its first element in the lower half.
#include <cuda_bf16.h>

#include <cstdint>

namespace longlive {
using bf16 = __nv_bfloat16;

// Rounds to nearest even.
__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
}  // namespace longlive
