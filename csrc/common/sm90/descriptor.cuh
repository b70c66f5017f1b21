#pragma once
// Matrices in shared memory as wgmma reads them. Lengths are in bytes, multiples of 16.
#include <cstdint>

#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
__device__ inline uint64_t descriptor_field(uint32_t bytes) { return uint64_t(bytes >> 4 & 0x3fff); }

// Without a swizzle, rows along the depth of the product (K-major): eight rows of 16 bytes lie in 128 bytes, row by
// row; the next 16 bytes of these rows are `leading` further on, the next eight rows `stride`. The start need only be a
// multiple of 16: any eight consecutive runs of 16 bytes can be such rows. (CUTLASS writes this layout
// ((8,m),(T,2)):((1T,SBO),(1,LBO)).)
__device__ inline uint64_t plain_descriptor(const void* matrix, int leading, int stride) {
  return descriptor_field(stride) << 32 | descriptor_field(leading) << 16 | descriptor_field(shared_address(matrix));
}

// Rows of 128 bytes under the 128-byte swizzle, as load_tile leaves the boxes of a matrix_map, from an address that is
// a multiple of 1024. Eight rows fill 1024 bytes; the next eight follow `stride` further on. Where rows run along the
// product's outer dimension (MN-major), the next 128 bytes of each are `leading` away; where they run along the depth
// (K-major), `leading` is not used.
__device__ inline uint64_t swizzled_descriptor(const void* matrix, int leading = 0, int stride = 1024) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | plain_descriptor(matrix, leading, stride);
}
}  // namespace longlive::sm90
