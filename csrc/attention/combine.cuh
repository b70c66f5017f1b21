#pragma once
// The second kernel of split-KV: combines the partial results of output tiles that several CTAs share.
#include <cuda_runtime.h>

#include <cfloat>
#include <numbers>

#include "attention/schedule.h"
#include "common/math.cuh"

namespace longlive::attention {
// exp(x / sqrt(d)) = exp2(kScale x)
constexpr float kScale = std::numbers::log2e_v<float> * 0.08838834764831845f;

// What a CTA leaves of an output tile that it has only a part of. `stats` are, of each row, the shift of its p in units
// of q k^T, and the sum of p; `out` is the sum of p v by that shift.
struct Partials {
  float* out;     // [partials, kRows of the schedule, 128]
  float2* stats;  // [partials, kRows of the schedule]

  // By a quad of threads, of which each has row r of the wgmma accumulator `x`: element 4 i + 2 r + j is column
  // 8 i + 2 (lane % 4) + j.
  __device__ void store(int64_t row, int lane, const float (&x)[kHeadDim / 2], int r, float2 of_row) const {
    if (lane % 4 == 0) stats[row] = of_row;
    float* to = out + row * kHeadDim + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; i += 4) *reinterpret_cast<float2*>(to + 2 * i) = {x[i + 2 * r], x[i + 2 * r + 1]};
  }
};

constexpr int kCombineThreads = 128, kCombineRows = kCombineThreads / 32;

// A warp has a row. Params: schedule(), partials, and finish(row, head, column, sums of four columns, sum of p), which
// stores a result.
template <class Params>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const __grid_constant__ Params p) {
  using Schedule = typename Params::Schedule;
  constexpr int kRows = Schedule::kRows;
  static __shared__ Schedule schedule;
  if (threadIdx.x == 0) schedule = p.schedule();
  __syncthreads();
  const int n = blockIdx.x / (kRows / kCombineRows), lane = threadIdx.x % 32;
  const int row = blockIdx.x % (kRows / kCombineRows) * kCombineRows + threadIdx.x / 32;  // within the output tile
  const typename Schedule::Split split = schedule.split(n);
  if (split.first == split.last || split.tile.row + row >= split.tile.end_row) return;
  // Precision: float32, in the order of the keys: the result is the same every time.
  float shift = -FLT_MAX, row_sum = 0;
  float4 out{};
  for (int cta = split.first; cta <= split.last; ++cta) {
    const int64_t at = int64_t(schedule.partial_of(cta, split)) * kRows + row;
    const float2 stats = p.partials.stats[at];
    const float4 x = reinterpret_cast<const float4*>(p.partials.out + at * kHeadDim)[lane];
    const float before = shift;
    shift = fmaxf(before, stats.x);
    const float rescale = exp2((before - shift) * kScale), scale = exp2((stats.x - shift) * kScale);
    row_sum = fmaf(row_sum, rescale, stats.y * scale);
    out.x = fmaf(out.x, rescale, x.x * scale);
    out.y = fmaf(out.y, rescale, x.y * scale);
    out.z = fmaf(out.z, rescale, x.z * scale);
    out.w = fmaf(out.w, rescale, x.w * scale);
  }
  p.finish(split.tile.row + row, split.tile.head, 4 * lane, out, row_sum);
}

// Where output tiles are split, launches the combination.
template <class Params>
cudaError_t combine(const Params& p, cudaStream_t stream) {
  using Schedule = typename Params::Schedule;
  const int tiles = p.split_kv ? Schedule::split_tiles(p.heads, p.rows, p.ctas) : 0;
  if (tiles == 0) return cudaSuccess;
  const cudaLaunchConfig_t config{.gridDim = tiles * (Schedule::kRows / kCombineRows),
                                  .blockDim = kCombineThreads,
                                  .dynamicSmemBytes = 0,
                                  .stream = stream};
  return cudaLaunchKernelEx(&config, combine_kernel<Params>, p);
}
}  // namespace longlive::attention
