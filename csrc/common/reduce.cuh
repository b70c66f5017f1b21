#pragma once
// Reductions over lanes.
#include <cstdint>

namespace longlive {
// Every lane receives the sum over the whole warp.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
// Every lane receives the maximum over the whole warp.
__device__ inline uint32_t warp_max(uint32_t x) { return __reduce_max_sync(0xffffffffu, x); }
// Every lane of a quad receives the reduction by f over the quad.
template <class T, class F>
__device__ T quad_reduce(T x, F f) {
  x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  return quad_reduce(x, [](float a, float b) { return a + b; });
}
}  // namespace longlive
