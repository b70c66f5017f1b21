#pragma once
// Host side of the copy engine: the driver's function that describes a tensor to it.
#include <cuda.h>
#include <cuda_runtime.h>

#include "common/error.h"

namespace longlive::sm90 {
// cuTensorMapEncodeTiled by way of the runtime: the library does not link the driver, so that it loads where there is
// none.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    LL_CHECK(entry != nullptr, "this driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encode;
}
}  // namespace longlive::sm90
