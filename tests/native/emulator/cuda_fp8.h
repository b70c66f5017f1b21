#pragma once
#include <cuda_runtime.h>

enum { __NV_SATFINITE };
enum { __NV_E4M3 };

// To nearest even. NaN is 0x7f.
inline uint8_t __nv_cvt_float_to_fp8(float x, int, int) {
  if (x != x) return 0x7f;
  const float size = std::fmin(std::fabs(x), 448.f);
  const int exponent = std::max(size > 0 ? std::ilogb(size) : -6, -6);
  const int eighths = int(std::nearbyint(std::ldexp(size, 3 - exponent)));
  return uint8_t(int(std::signbit(x)) << 7 | (((exponent + 7) << 3) + eighths - 8));
}
inline uint16_t __nv_cvt_float2_to_fp8x2(float2 x, int saturated, int kind) {
  return uint16_t(__nv_cvt_float_to_fp8(x.x, saturated, kind) | __nv_cvt_float_to_fp8(x.y, saturated, kind) << 8);
}
