#pragma once
// Sums over a warp.

namespace longlive {
// Every lane receives the sum over the whole warp.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
}  // namespace longlive
