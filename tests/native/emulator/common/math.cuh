#pragma once
#include <cuda_fp16.h>

#include <cmath>

namespace longlive {
inline float exp2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1 / x; }
inline __half2 tanh_approx(__half2 x) { return __floats2half2_rn(std::tanh(float(x.x)), std::tanh(float(x.y))); }
}  // namespace longlive
