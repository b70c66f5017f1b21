#pragma once
// The copy engine (TMA) on tensors of four dimensions and on runs of bytes: from global to shared memory, by one
// thread, reported to a barrier.
#include <cuda.h>
#include <cuda_runtime.h>

#include "common/sm90/barrier.cuh"
#include "common/sm90/tensor_map.h"

namespace longlive::sm90 {
using TensorMap = CUtensorMap;

// prefetch.tensormap
__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// cp.async.bulk.tensor: the box whose first element has these coordinates, innermost first. It lands dense, in the
// order of its coordinates. What lies outside of the tensor, before its start too, arrives as zeros and counts as
// bytes.
__device__ inline void load_tile(void* to, const TensorMap& map, int c0, int c1, int c2, int c3, Barrier& landed) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(shared_address(&landed))
      : "memory");
}

// cp.async.bulk: a run of bytes; address, size and destination are multiples of 16.
__device__ inline void load_bytes(void* to, const void* from, int bytes, Barrier& landed) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(&landed))
               : "memory");
}

// The description of a bfloat16 tensor that load_tile reads in boxes of this shape: sizes, box and strides innermost
// first; strides in bytes, multiples of 16, of all dimensions but the innermost, which is dense.
inline TensorMap tile_map(const void* data, const cuuint64_t (&size)[4], const cuuint64_t (&stride)[3],
                          const cuuint32_t (&box)[4]) {
  TensorMap map;
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), size, stride, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  LL_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed: ", int(result));
  return map;
}
}  // namespace longlive::sm90
