#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace longlive {
inline float exp2(float x) { return std::exp2(x); }
inline int32_t exp2_bits(float x) { return std::bit_cast<int32_t>(std::exp2(x)); }
inline float reciprocal(float x) { return 1 / x; }
}  // namespace longlive
