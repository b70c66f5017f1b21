#pragma once
// Host side of the copy engine (TMA): describes a tensor to it.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/error.h"

namespace longlive::sm90 {
using TensorMap = CUtensorMap;

enum class Swizzle { kNone = CU_TENSOR_MAP_SWIZZLE_NONE, k128 = CU_TENSOR_MAP_SWIZZLE_128B };

// cuTensorMapEncodeTiled by way of the runtime: the library does not link the driver, so that it loads where there is
// none.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    LL_CHECK(error == cudaSuccess, "cudaGetDriverEntryPointByVersion failed: ", int(error));
    LL_CHECK(entry != nullptr, "this driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encode;
}

template <class T>
constexpr CUtensorMapDataType tensor_map_type() {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  } else {
    static_assert(sizeof(T) == 1, "copied are bfloat16 and all types of one byte");
    return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

// The description of a tensor that load_tile reads in boxes. Sizes, box and strides are innermost first; strides are in
// bytes, multiples of 16, of all dimensions but the innermost, which is dense.
template <class T, int kRank>
TensorMap tile_map(const T* data, const cuuint64_t (&size)[kRank], const cuuint64_t (&stride)[kRank - 1],
                   const cuuint32_t (&box)[kRank], Swizzle swizzle) {
  TensorMap map;
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result = tensor_map_encoder()(&map, tensor_map_type<T>(), kRank, const_cast<T*>(data), size, stride,
                                               box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle(swizzle),
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  LL_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed: ", int(result));
  return map;
}

// A matrix in boxes of box_rows x 128 bytes, the widest rows that the 128-byte swizzle takes. `stride` is the distance
// of rows in bytes.
template <class T>
TensorMap matrix_map(const T* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  return tile_map<T, 2>(data, {cuuint64_t(columns), cuuint64_t(rows)}, {cuuint64_t(stride)},
                        {128 / sizeof(T), cuuint32_t(box_rows)}, Swizzle::k128);
}
}  // namespace longlive::sm90
