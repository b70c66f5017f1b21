#pragma once
// One instruction each.
#include <cuda_fp16.h>

#include <cstdint>

namespace longlive {
// ex2.approx: 2^x, to about 2 units in the last place.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The same in an integer register. Between floats and integers in registers of their own, ptxas keeps copies; where a
// tensor core sums integers, of which nearly all registers are, those would spill.
__device__ inline int32_t exp2_bits(float x) {
  int32_t y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
// cvt.rn.relu.f16x2: how many times 2^-24 goes into a (low half) and b (high half), rounded; exact below 2048, beyond
// that at least so many. Below zero: 0. NaN: 0x7fff. The bits of a half's smallest numbers count them.
__device__ inline uint32_t pack_counts(float a, float b) {
  uint32_t y;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
  return y;
}
// rcp.approx: 1 / x, to 1 unit in the last place; 0 for infinity.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// tanh.approx, of two: to 2^-11.
__device__ inline __half2 tanh_approx(__half2 x) {
  uint32_t y;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(y) : "r"(reinterpret_cast<const uint32_t&>(x)));
  return reinterpret_cast<const __half2&>(y);
}
}  // namespace longlive
