#pragma once
#include <cuda_runtime.h>

// Each operation rounds once, as the instruction does.
struct __half {
  _Float16 value;
};
struct __half2 {
  _Float16 x, y;
};
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline float __half2float(__half x) { return float(x.value); }
inline __half2 __half2half2(__half x) { return {x.value, x.value}; }
inline __half2 __float2half2_rn(float x) { return {_Float16(x), _Float16(x)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {_Float16(x), _Float16(y)}; }
inline __half __low2half(__half2 a) { return {a.x}; }
inline __half __high2half(__half2 a) { return {a.y}; }
inline __half2 __hmul2(__half2 a, __half2 b) {
  return {_Float16(float(a.x) * float(b.x)), _Float16(float(a.y) * float(b.y))};
}
inline _Float16 fused(_Float16 a, _Float16 b, _Float16 c) { return _Float16(double(a) * double(b) + double(c)); }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {fused(a.x, b.x, c.x), fused(a.y, b.y, c.y)}; }
inline __half2 __habs2(__half2 a) { return {_Float16(std::fabs(float(a.x))), _Float16(std::fabs(float(a.y)))}; }
inline _Float16 larger(_Float16 a, _Float16 b) { return a != a || a > b ? a : b; }
inline __half __hmax_nan(__half a, __half b) { return {larger(a.value, b.value)}; }
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return {larger(a.x, b.x), larger(a.y, b.y)}; }
inline _Float16 smaller(_Float16 a, _Float16 b) { return a != a || b < a ? b : a; }
inline __half2 __hmin2(__half2 a, __half2 b) { return {smaller(a.x, b.x), smaller(a.y, b.y)}; }
inline __half2 __low2half2(__half2 a) { return {a.x, a.x}; }
inline __half2 __high2half2(__half2 a) { return {a.y, a.y}; }
inline bool __hble2(__half2 a, __half2 b) { return a.x <= b.x && a.y <= b.y; }
