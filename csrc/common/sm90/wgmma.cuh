#pragma once
// wgmma: products of a warpgroup, 64 rows high and 16 deep, of bfloat16 with float32 sums. They run beside the threads
// that issued them: fence, any number of them, commit; then wait before touching a register that they read or write.
#include <cstdint>

#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
__device__ inline void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending of the committed groups are under way.
template <int kPending>
__device__ void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to these registers across this point: it does not see that they are in use
// between the issue of a product and the wait for it.
template <int kSize>
__device__ void pin(float (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kSize>
__device__ void pin(uint32_t (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// A matrix in shared memory as the tensor cores read it: rows of 128 bytes under the 128-byte swizzle, as load_box
// leaves them, from an address that is a multiple of 1024. Eight rows fill 1024 bytes; the next eight follow `stride`
// bytes further on. Where rows run along the product's outer dimension, the next 64 elements of each are `leading`
// bytes away; where they run along the depth, `leading` is not used.
__device__ inline uint64_t matrix_descriptor(const void* matrix, int leading, int stride = 1024) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const auto field = [](uint32_t bytes) { return uint64_t(bytes >> 4 & 0x3fff); };
  return kSwizzle128 | field(stride) << 32 | field(leading) << 16 | field(shared_address(matrix));
}

#define LL_ACC8(d, i)                                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define LL_ACC16(d, i) LL_ACC8(d, i), LL_ACC8(d, i + 8)

// d (+)= a b^T: a [64, 16] and b [N, 16], both in shared memory with rows along the depth.
template <bool kAccumulate>
__device__ void mma_ss(float (&d)[96], uint64_t a, uint64_t b) {  // N = 192
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "
      "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
      "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "%96, %97, %98, 1, 1, 0, 0;"
      : LL_ACC16(d, 0), LL_ACC16(d, 16), LL_ACC16(d, 32), LL_ACC16(d, 48), LL_ACC16(d, 64), LL_ACC16(d, 80)
      : "l"(a), "l"(b), "n"(int(kAccumulate)));
}

// d += a b: a [64, 16] in registers, laid out as d is; b [16, 128] in shared memory, rows along the outer dimension.
__device__ inline void mma_rs(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
      : LL_ACC16(d, 0), LL_ACC16(d, 16), LL_ACC16(d, 32), LL_ACC16(d, 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef LL_ACC16
#undef LL_ACC8
}  // namespace longlive::sm90
