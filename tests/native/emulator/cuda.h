#pragma once
// The driver's description of a tensor, and what it refuses.
#include <cstdint>

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct CUtensorMap {
  const uint8_t* data;
  int rank, element_bytes;
  bool swizzled;
  int64_t size[4], stride[4];  // stride in bytes, of the innermost too
  int box[4];
};

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                                       const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  *map = {static_cast<const uint8_t*>(data),
          int(rank),
          type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2,
          swizzle == CU_TENSOR_MAP_SWIZZLE_128B,
          {},
          {},
          {}};
  bool good = rank >= 1 && rank <= 4 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int i = 0; good && i < int(rank); ++i) {
    map->size[i] = int64_t(size[i]), map->box[i] = int(box[i]);
    map->stride[i] = i ? int64_t(stride[i - 1]) : map->element_bytes;
    good = size[i] > 0 && box[i] >= 1 && box[i] <= 256 && steps[i] == 1 && (i == 0 || map->stride[i] % 16 == 0);
  }
  const int row = map->box[0] * map->element_bytes;
  return good && row % 16 == 0 && (!map->swizzled || row <= 128) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
