#pragma once
// e4m3: 8 bits with 4 of exponent and 3 of mantissa, at most 448.
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace longlive {
// Two, a in the lower byte, each rounded to nearest even. NaN (0x7f) for what is beyond +-448 or not finite.
__device__ inline uint16_t pack_e4m3(float a, float b) {
  const float nan = __uint_as_float(0x7fffffff);
  const float2 pair{fabsf(a) <= 448 ? a : nan, fabsf(b) <= 448 ? b : nan};
  return __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
}
}  // namespace longlive
