#pragma once
// What the kernels of attention over the ring share: the parameters that all kinds have, and the launch.
#include <algorithm>

#include "attention/combine.cuh"
#include "common/bf16.cuh"
#include "common/sm90/tma.cuh"

namespace longlive::attention {
constexpr int kRows = 64;  // queries of a consumer

// A kind's Params add its own. `tile_rows`: queries of an output tile.
template <int tile_rows, int tile_keys>
struct RingParams {
  using Schedule = attention::Schedule<tile_rows>;

  bf16* out;  // [rows, heads, 128]
  Partials partials;
  const int* valid;  // [1]: the keys are the ring's tokens [0, valid)
  int rows, heads, tokens, ctas;
  bool split_kv;

  __device__ int keys() const { return std::clamp(*valid, 0, tokens); }
  __device__ Schedule schedule() const { return {heads, rows, key_tiles_of(keys(), tile_keys), ctas, split_kv}; }
  __device__ bf16* at(int row, int head, int column) const {
    return out + (int64_t(row) * heads + head) * kHeadDim + column;
  }
  // By which a row's sums become its result; without any key that is zero.
  static __device__ float inverse(float row_sum) { return row_sum == 0 ? 0 : 1 / row_sum; }
};

// What the producer copies from.
struct Maps {
  sm90::TensorMap q, k, v;
};

// Attention, then, where output tiles are split, the combination.
template <class Params>
cudaError_t launch_kernel(void (*kernel)(Maps, Params), int threads, int bytes, const Maps& maps, const Params& p,
                          cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const cudaLaunchConfig_t config{
      .gridDim = p.ctas, .blockDim = threads, .dynamicSmemBytes = size_t(bytes), .stream = stream};
  error = cudaLaunchKernelEx(&config, kernel, maps, p);
  return error != cudaSuccess ? error : combine(p, stream);
}
}  // namespace longlive::attention
