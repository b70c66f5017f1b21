// quantize: the kernels of quantize.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/quantize.cuh"

namespace longlive {
namespace {
std::tuple<Tensor, Tensor> quantize(const Tensor& x, int64_t groups) {
  check_rows(x, "x");
  LL_CHECK(groups == 1, "groups must be 1, got ", groups);
  const int64_t rows = x.size(0), size = x.size(1);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor values = torch::stable::new_empty(x, {rows, size}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {1, rows}, ScalarType::Float);
  const unsigned blocks = blocks_for_rows(rows);
  if (blocks == 0) return {values, scale};
  launch_as(x, [&]<class T>(T, cudaStream_t stream) {
    const QuantizeParams<T> p{data<T>(x), data<int8_t>(values), data<float>(scale), int(rows), int(size)};
    quantize_kernel<T><<<blocks, kThreads, 0, stream>>>(p);
  });
  return {values, scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("quantize", TORCH_BOX(&longlive::quantize)); }
