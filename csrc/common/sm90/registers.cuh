#pragma once
// setmaxnreg, which divides the registers anew among the roles, and `pin`, which stops the compiler from hoisting loads
// and address arithmetic above a wgmma main loop, where they would spill accumulators.
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace longlive::sm90 {
// setmaxnreg, by all warps of a warpgroup: gives registers back, or takes what others gave. A multiple of 8.
template <int kCount>
__device__ void reg_dealloc() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ void reg_alloc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// What depends on x is computed after this point, not earlier.
template <class T>
__device__ void pin(T*& x) {
  asm volatile("" : "+l"(x));
}
__device__ inline void pin(int& x) { asm volatile("" : "+r"(x)); }

// Accesses to these registers stay on their side of this point: the compiler does not see that wgmma uses them between
// its issue and the wait for it.
template <int kSize>
__device__ void pin(float (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <class T, int kSize>
  requires(sizeof(T) == 4 && std::is_integral_v<T>)
__device__ void pin(T (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// ld.global: stays behind the stores before it, since they might write the same address.
__device__ inline uint4 load_in_order(const uint4* p) {
  uint4 x;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p)
               : "memory");
  return x;
}
__device__ inline int load_in_order(const int* p) {
  int x;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
// ld.volatile.shared, in the same order: what was loaded before is not kept in registers for a second use.
__device__ inline float4 load_shared_in_order(const float* p) {
  float4 x;
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(p)))
               : "memory");
  return x;
}

// st.global: the compiler does not know the memory space of a pinned address.
__device__ inline void store(void* to, uint2 x) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(x.x), "r"(x.y) : "memory");
}
__device__ inline void store(void* to, uint4 x) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
}  // namespace longlive::sm90
