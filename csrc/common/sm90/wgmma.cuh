#pragma once
// wgmma: products of a warpgroup, 64 rows high and 32 bytes deep. They run beside the threads that issued them: fence,
// any number of products, commit; then wait before touching a register that they read or write.
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "common/sm90/descriptor.cuh"

struct __nv_fp8_e4m3;

namespace longlive::sm90 {
// Elements of 32 bytes, and the type in which products of T are summed.
template <class T>
constexpr int kDepth = std::is_same_v<T, __nv_bfloat16> ? 16 : 32;
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;

__device__ inline void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending of the committed groups are under way.
template <int kPending>
__device__ void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define LL_SUMS_4 "%0, %1, %2, %3"
#define LL_SUMS_8 LL_SUMS_4 ", %4, %5, %6, %7"
#define LL_SUMS_16 LL_SUMS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LL_SUMS_32 LL_SUMS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LL_SUMS_48 LL_SUMS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define LL_SUMS_64 LL_SUMS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LL_SUMS_80 LL_SUMS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define LL_SUMS_96 LL_SUMS_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define LL_SUMS_112 \
  LL_SUMS_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define LL_SUMS_128 \
  LL_SUMS_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define LL_IN_OUT_4(C, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3])
#define LL_IN_OUT_8(C, i) LL_IN_OUT_4(C, i), LL_IN_OUT_4(C, i + 4)
#define LL_IN_OUT_16(C, i) LL_IN_OUT_8(C, i), LL_IN_OUT_8(C, i + 8)
#define LL_IN_OUT_32(C, i) LL_IN_OUT_16(C, i), LL_IN_OUT_16(C, i + 16)
#define LL_IN_OUT_48(C, i) LL_IN_OUT_32(C, i), LL_IN_OUT_16(C, i + 32)
#define LL_IN_OUT_64(C, i) LL_IN_OUT_48(C, i), LL_IN_OUT_16(C, i + 48)
#define LL_IN_OUT_80(C, i) LL_IN_OUT_64(C, i), LL_IN_OUT_16(C, i + 64)
#define LL_IN_OUT_96(C, i) LL_IN_OUT_48(C, i), LL_IN_OUT_48(C, i + 48)
#define LL_IN_OUT_112(C, i) LL_IN_OUT_64(C, i), LL_IN_OUT_48(C, i + 64)
#define LL_IN_OUT_128(C, i) LL_IN_OUT_64(C, i), LL_IN_OUT_64(C, i + 64)

// The instruction for N columns, N / 2 sums a thread: its types, the constraint of a sum, the operands after the sums,
// and what follows scale-d.
#define LL_MMA(N, SUMS, TYPES, C, OPERANDS, REST, ...)                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N TYPES " {" LL_SUMS_##SUMS "}, " OPERANDS REST ";" \
               : LL_IN_OUT_##SUMS(C, 0)                                                                 \
               : __VA_ARGS__, "n"(int(kAccumulate)))

// d (+)= a b^T: a [64, kDepth<T>] and b [N, kDepth<T>] in shared memory, K-major; d are N / 2 registers. A part of one
// product's registers may be another's, from a multiple of 8 on.
template <class T, int N, bool kAccumulate = true>
__device__ void mma_ss(Sum<T>* d, uint64_t a, uint64_t b) {
#define LL_MMA_SS(TYPES, C, REST)                                         \
  if constexpr (N == 16)                                                  \
    LL_MMA(16, 8, TYPES, C, "%8, %9, %10", REST, "l"(a), "l"(b));         \
  else if constexpr (N == 64)                                             \
    LL_MMA(64, 32, TYPES, C, "%32, %33, %34", REST, "l"(a), "l"(b));      \
  else if constexpr (N == 96)                                             \
    LL_MMA(96, 48, TYPES, C, "%48, %49, %50", REST, "l"(a), "l"(b));      \
  else if constexpr (N == 128)                                            \
    LL_MMA(128, 64, TYPES, C, "%64, %65, %66", REST, "l"(a), "l"(b));     \
  else if constexpr (N == 160)                                            \
    LL_MMA(160, 80, TYPES, C, "%80, %81, %82", REST, "l"(a), "l"(b));     \
  else if constexpr (N == 192)                                            \
    LL_MMA(192, 96, TYPES, C, "%96, %97, %98", REST, "l"(a), "l"(b));     \
  else if constexpr (N == 224)                                            \
    LL_MMA(224, 112, TYPES, C, "%112, %113, %114", REST, "l"(a), "l"(b)); \
  else if constexpr (N == 256)                                            \
    LL_MMA(256, 128, TYPES, C, "%128, %129, %130", REST, "l"(a), "l"(b)); \
  else                                                                    \
    static_assert(N == 16, "no product of this width")
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    LL_MMA_SS("k16.f32.bf16.bf16", "+f", ", 1, 1, 0, 0");
  } else if constexpr (std::is_same_v<T, int8_t>) {
    LL_MMA_SS("k32.s32.s8.s8", "+r", "");
  } else {
    static_assert(std::is_same_v<T, __nv_fp8_e4m3>, "no product of this type");
    LL_MMA_SS("k32.f32.e4m3.e4m3", "+f", ", 1, 1");
  }
#undef LL_MMA_SS
}

// d (+)= a b: a [64, kDepth<T>] in four registers of each thread. Register j is 4 bytes of row lane / 4 + 8 (j % 2) of
// the warp's 16, from byte 16 (j / 2) + 4 (lane % 4) on; in bfloat16, that is how d lies. b [kDepth<T>, N] is in
// shared memory: of bfloat16 MN-major, of one byte K-major, the only order that wgmma has for them.
template <class T, int N = 128, bool kAccumulate = true>
__device__ void mma_rs(Sum<T>* d, const uint32_t* a, uint64_t b) {
#define LL_MMA_RS(TYPES, C, REST)                                                                 \
  if constexpr (N == 8)                                                                           \
    LL_MMA(8, 4, TYPES, C, "{%4, %5, %6, %7}, %8, %9", REST, LL_A_IN_REGISTERS, "l"(b));          \
  else if constexpr (N == 128)                                                                    \
    LL_MMA(128, 64, TYPES, C, "{%64, %65, %66, %67}, %68, %69", REST, LL_A_IN_REGISTERS, "l"(b)); \
  else                                                                                            \
    static_assert(N == 8, "no product of this width")
#define LL_A_IN_REGISTERS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    LL_MMA_RS("k16.f32.bf16.bf16", "+f", ", 1, 1, 1");
  } else if constexpr (std::is_same_v<T, int8_t>) {
    LL_MMA_RS("k32.s32.s8.s8", "+r", "");
  } else {
    static_assert(std::is_same_v<T, __nv_fp8_e4m3>, "no product of this type");
    LL_MMA_RS("k32.f32.e4m3.e4m3", "+f", ", 1, 1");
  }
#undef LL_A_IN_REGISTERS
#undef LL_MMA_RS
}

#undef LL_MMA
#undef LL_IN_OUT_128
#undef LL_IN_OUT_112
#undef LL_IN_OUT_96
#undef LL_IN_OUT_80
#undef LL_IN_OUT_64
#undef LL_IN_OUT_48
#undef LL_IN_OUT_32
#undef LL_IN_OUT_16
#undef LL_IN_OUT_8
#undef LL_IN_OUT_4
#undef LL_SUMS_128
#undef LL_SUMS_112
#undef LL_SUMS_96
#undef LL_SUMS_80
#undef LL_SUMS_64
#undef LL_SUMS_48
#undef LL_SUMS_32
#undef LL_SUMS_16
#undef LL_SUMS_8
#undef LL_SUMS_4
}  // namespace longlive::sm90
