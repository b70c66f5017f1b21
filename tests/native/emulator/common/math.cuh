#pragma once
#include <cuda_fp16.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace longlive {
inline float exp2(float x) { return std::exp2(x); }
inline int32_t exp2_bits(float x) { return std::bit_cast<int32_t>(std::exp2(x)); }
inline uint32_t pack_counts(float a, float b) {
  const auto half = [](float x) {
    return uint32_t(x != x ? 0x7fff : std::bit_cast<uint16_t>(_Float16(std::fmax(x, 0.f))));
  };
  return half(b) << 16 | half(a);
}
inline float reciprocal(float x) { return 1 / x; }
inline __half2 tanh_approx(__half2 x) { return __floats2half2_rn(std::tanh(float(x.x)), std::tanh(float(x.y))); }
}  // namespace longlive
