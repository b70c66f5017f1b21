#pragma once
// Grids of the kernels in which a warp has a row.
#include <cuda_runtime.h>

#include <cstdint>

#include "common/error.h"
#include "common/shapes.h"

namespace longlive {
// One warp per row. Four to a block: small enough that the blocks of a few thousand rows spread evenly over the chip.
constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = 32 * kWarpsPerBlock;

inline unsigned blocks_for_rows(int64_t rows) {
  LL_CHECK(rows <= INT32_MAX - kWarpsPerBlock, "too many rows for one launch: ", rows);
  return static_cast<unsigned>(ceil_div(rows, kWarpsPerBlock));
}

// One warp per row, where a block has a run of kKeyRun rows.
constexpr int kRunThreads = 32 * kKeyRun;

inline unsigned blocks_for_runs(int64_t rows) {
  LL_CHECK(rows <= INT32_MAX, "too many rows for one launch: ", rows);
  return static_cast<unsigned>(rows / kKeyRun);
}

__device__ inline int row_of_warp() { return blockIdx.x * kWarpsPerBlock + threadIdx.x / 32; }
}  // namespace longlive
