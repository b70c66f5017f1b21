// quantize: runs of a row's columns as int8 with a scale each. A warp has as many whole runs of a row as it can hold,
// in its registers.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/row_scale.cuh"
#include "common/vec.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* x;      // [rows, size]
  int8_t* values;  // [rows, size]
  float* scale;    // [groups, rows]
  int rows, size;
  int piece, runs;      // elements and runs of a warp
  int lanes;            // the largest power of two that divides the vectors of a run, at most 32
  uint32_t per_vector;  // kOne / vectors of a run, rounded up: a vector's index times that is its run times kOne, and
                        // less than kOne more
};
constexpr uint32_t kOne = 1 << 20;  // above the square of the vectors of a warp

// kWhole: a warp has one run.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const Params<T> p) {
  constexpr int kVector = Vec<T>::kSize, kMaxRuns = kMaxSize / kVector;
  static_assert(kMaxRuns * kMaxRuns < kOne);
  const int row = row_of_warp(), lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const int64_t start = int64_t(row) * p.size + blockIdx.y * p.piece;
  const Row<T> x(p.x + start, p.piece);
  float* scales = p.scale + int64_t(blockIdx.y * p.runs) * p.rows + row;
  // Stores the values, by the scale that scale_of(i) gives for vector i.
  const auto store = [&](auto scale_of) {
#pragma unroll
    for (int i = 0; i < x.kVectors; ++i)
      if (x.has(i)) store_int8(p.values + start + x.offset(i), x.vector[i], scale_of(i));
  };
  if constexpr (kWhole) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < x.kVectors; ++i)
      if (x.has(i)) largest = max(largest, largest_magnitude(x.vector[i]));
    const RowScale scale(warp_max(largest));
    store([&](int) { return scale; });
    if (lane == 0) *scales = scale.scale;
  } else {
    __shared__ uint32_t all_largest[kWarpsPerBlock][kMaxRuns];
    __shared__ RowScale all_scales[kWarpsPerBlock][kMaxRuns];
    uint32_t* largest = all_largest[threadIdx.x / 32];
    RowScale* scale = all_scales[threadIdx.x / 32];
    const auto run_of = [&](int i) { return x.offset(i) / kVector * p.per_vector / kOne; };
    for (int run = lane; run < p.runs; run += 32) largest[run] = 0;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < x.kVectors; ++i) {
      uint32_t most = x.has(i) ? largest_magnitude(x.vector[i]) : 0;
      for (int lanes = p.lanes / 2; lanes > 0; lanes /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, lanes));
      if (x.has(i) && lane % p.lanes == 0) atomicMax(&largest[run_of(i)], most);
    }
    __syncwarp();
    for (int run = lane; run < p.runs; run += 32) {
      scale[run] = RowScale(largest[run]);
      scales[int64_t(run) * p.rows] = scale[run].scale;
    }
    __syncwarp();
    store([&](int i) { return scale[run_of(i)]; });
  }
}

std::tuple<Tensor, Tensor> quantize(const Tensor& x, int64_t groups) {
  const int64_t vector = vector_size(x, "x");
  LL_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  const int64_t rows = x.size(0), size = x.size(1);
  check_tensor(x, "x", {rows, size}, x.scalar_type(), x);
  LL_CHECK(groups > 0 && size > 0 && size % groups == 0, "groups must divide the ", size, " columns of x, got ",
           groups);
  const int64_t run = size / groups;
  LL_CHECK(run <= kMaxSize && run % vector == 0, "groups must have at most ", kMaxSize, " columns each, a multiple of ",
           vector, "; got ", run);
  LL_CHECK(rows <= INT32_MAX - kWarpsPerBlock && size <= INT32_MAX, "x must have rows for one launch, got ", rows);
  int64_t runs = kMaxSize / run;  // of a warp
  while (groups % runs) --runs;
  LL_CHECK(groups / runs <= 65535, "groups must be few enough for one launch, got ", groups);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor values = torch::stable::new_empty(x, {rows, size}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {groups, rows}, ScalarType::Float);
  if (rows == 0) return {values, scale};
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const auto vectors = uint32_t(run / vector);
    const Params<T> p{data<T>(x),
                      data<int8_t>(values),
                      data<float>(scale),
                      int(rows),
                      int(size),
                      int(runs * run),
                      int(runs),
                      int(std::min(vectors & -vectors, 32u)),
                      ceil_div(kOne, vectors)};
    const dim3 grid(blocks_for_rows(rows), unsigned(groups / runs));
    const auto kernel = runs == 1 ? quantize_kernel<T, true> : quantize_kernel<T, false>;
    kernel<<<grid, kThreads, 0, stream>>>(p);
  });
  return {values, scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("quantize", TORCH_BOX(&longlive::quantize)); }
