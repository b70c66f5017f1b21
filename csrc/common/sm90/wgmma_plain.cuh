#pragma once
// wgmma on operands that are not swizzled.
#include "common/sm90/wgmma.cuh"

namespace longlive::sm90 {
// A matrix in shared memory as the tensor cores read it without a swizzle, its rows along the product's depth: eight
// rows of eight elements lie in 128 bytes, row by row; the next eight elements of these rows are `leading` bytes
// further on, the next eight rows `stride` bytes. The start need only be a multiple of 16: any eight consecutive runs
// of 16 bytes can be such rows. (CUTLASS writes this layout ((8,m),(T,2)):((1T,SBO),(1,LBO)).)
__device__ inline uint64_t plain_descriptor(const void* matrix, int leading, int stride) {
  const auto field = [](uint32_t bytes) { return uint64_t(bytes >> 4 & 0x3fff); };
  return field(stride) << 32 | field(leading) << 16 | field(shared_address(matrix));
}

#define LL_ACC8(d, i)                                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define LL_ACC16(d, i) LL_ACC8(d, i), LL_ACC8(d, i + 8)

// d += a b^T: a [64, 16] and b [N, 16], both as plain_descriptor says; d are N / 2 registers. A part of one product's
// registers may be another's, from a multiple of 8 on.
template <int N>
__device__ void mma_plain(float* d, uint64_t a, uint64_t b);

template <>
__device__ inline void mma_plain<16>(float* d, uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "%8, %9, 1, 1, 1, 0, 0;"
      : LL_ACC8(d, 0)
      : "l"(a), "l"(b));
}

template <>
__device__ inline void mma_plain<96>(float* d, uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, "
      "%43, %44, %45, %46, %47}, "
      "%48, %49, 1, 1, 1, 0, 0;"
      : LL_ACC16(d, 0), LL_ACC16(d, 16), LL_ACC16(d, 32)
      : "l"(a), "l"(b));
}

template <>
__device__ inline void mma_plain<192>(float* d, uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, "
      "%43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "
      "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "%96, %97, 1, 1, 1, 0, 0;"
      : LL_ACC16(d, 0), LL_ACC16(d, 16), LL_ACC16(d, 32), LL_ACC16(d, 48), LL_ACC16(d, 64), LL_ACC16(d, 80)
      : "l"(a), "l"(b));
}

#undef LL_ACC16
#undef LL_ACC8
}  // namespace longlive::sm90
