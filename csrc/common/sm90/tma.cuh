#pragma once
// The copy engine (TMA): boxes of a matrix from global to shared memory, by one thread, reported to a barrier.
#include <cuda.h>
#include <cuda_runtime.h>

#include "common/sm90/barrier.cuh"
#include "common/sm90/tensor_map.h"

namespace longlive::sm90 {
// prefetch.tensormap
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// cp.async.bulk.tensor: the box whose first element is (row, column). What lies outside of the matrix arrives as zeros,
// and counts as bytes too.
__device__ inline void load_box(void* to, const CUtensorMap& map, int row, int column, Barrier& landed) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      :
      : "r"(shared_address(to)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(&landed))
      : "memory");
}

// The description of a bfloat16 matrix that load_box reads, in boxes of box_rows x 64 elements: rows of 128 bytes, the
// widest that the 128-byte swizzle takes. `stride` is the distance of rows in bytes, a multiple of 16.
inline CUtensorMap matrix_map(const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  CUtensorMap map;
  const cuuint64_t size[] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[] = {cuuint64_t(stride)};
  const cuuint32_t box[] = {64, cuuint32_t(box_rows)}, steps[] = {1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), size, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  LL_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed: ", int(result));
  return map;
}
}  // namespace longlive::sm90
