#pragma once
// Where the compiler must not run ahead: what it would load or compute early takes registers that products are in.
#include <cuda_runtime.h>

#include <cstdint>

namespace longlive::sm90 {
// ld.global: stays behind the stores that stand before it, as they might be to the same place.
__device__ inline float2 load_in_order(const float2* p) {
  float2 x;
  asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(p) : "memory");
  return x;
}

// st.global: behind a pinned address the compiler does not know which memory it is of.
__device__ inline void store(void* to, uint32_t x) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

// What depends on x is computed after this, not earlier.
template <class T>
__device__ void pin(T*& x) {
  asm volatile("" : "+l"(x));
}
__device__ inline void pin(int& x) { asm volatile("" : "+r"(x)); }
}  // namespace longlive::sm90
