// quantize: runs of a row's columns as int8 with a scale each. A block has as many whole runs of a row as it can hold.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "common/block_row.cuh"
#include "common/check.h"
#include "common/launch.h"
#include "common/row_scale.cuh"

namespace longlive {
namespace {
template <class T>
struct Params {
  const T* x;      // [rows, size]
  int8_t* values;  // [rows, size]
  float* scale;    // [groups, rows]
  int rows, size;
  int piece, runs;      // elements and runs of a block
  int lanes;            // the largest power of two that divides the vectors of a run, at most 32
  uint32_t per_vector;  // kOne / vectors of a run, rounded up: a vector's index times that is its run times kOne, and
                        // less than kOne more
};
constexpr uint32_t kOne = 1 << 20;  // above the square of the vectors of a block

template <class T>
__global__ void __launch_bounds__(BlockRow<T>::kThreads) quantize_kernel(const Params<T> p) {
  using V = Vec<T>;
  using R = BlockRow<T>;
  constexpr int kMaxRuns = kMaxSize / V::kSize;
  static_assert(kMaxRuns * kMaxRuns < kOne);
  const int row = blockIdx.x;
  const int64_t start = int64_t(row) * p.size + blockIdx.y * p.piece;
  const R x(p.x + start, p.piece);
  const auto run_of = [&](int i) { return x.offset(i) / V::kSize * p.per_vector / kOne; };

  __shared__ uint32_t largest[kMaxRuns];
  for (int i = threadIdx.x; i < p.runs; i += R::kThreads) largest[i] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    uint32_t most = x.has(i) ? largest_magnitude(x.vector[i]) : 0;
    for (int lane = p.lanes / 2; lane > 0; lane /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, lane));
    if (x.has(i) && threadIdx.x % p.lanes == 0) atomicMax(&largest[run_of(i)], most);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i)
    if (x.has(i)) store_int8(p.values + start + x.offset(i), x.vector[i], RowScale(largest[run_of(i)]));
  for (int i = threadIdx.x; i < p.runs; i += R::kThreads)
    p.scale[int64_t(blockIdx.y * p.runs + i) * p.rows + row] = RowScale(largest[i]).scale;
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
  LL_CHECK(rows <= INT32_MAX && size <= INT32_MAX, "x must have rows for one launch, got ", rows);
  int64_t runs = kMaxSize / run;  // of a block
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
    const dim3 grid(unsigned(rows), unsigned(groups / runs));
    quantize_kernel<T><<<grid, BlockRow<T>::kThreads, 0, stream>>>(p);
  });
  return {values, scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("quantize", TORCH_BOX(&longlive::quantize)); }
