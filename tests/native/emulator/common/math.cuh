#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace longlive {
inline float exp2(float x) { return std::exp2(x); }
inline int32_t exp2_bits(float x) { return std::bit_cast<int32_t>(std::exp2(x)); }
inline float reciprocal(float x) { return 1 / x; }
inline float tanh_approx(float x) { return std::tanh(x); }
inline uint32_t pack_int8(int a, int b, uint32_t upper) {
  const auto byte = [](int x) { return uint32_t(uint8_t(std::clamp(x, -128, 127))); };
  return upper << 16 | byte(b) << 8 | byte(a);
}
}  // namespace longlive
