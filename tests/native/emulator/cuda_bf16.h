#pragma once
#include <cuda_runtime.h>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float widen(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }
inline uint16_t narrow(float x) {  // to nearest even
  if (x != x) return 0x7fff;
  const uint32_t u = std::bit_cast<uint32_t>(x);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {narrow(x)}; }
inline __nv_bfloat16 __float2bfloat16(float x) { return {narrow(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return widen(x.bits); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {{narrow(x)}, {narrow(y)}}; }
