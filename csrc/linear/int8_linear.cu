// int8_linear, int8_linear_gelu: the kernel of int8_linear.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "linear/int8_linear.cuh"

namespace longlive {
namespace {
using linear::Gelu;
using linear::Groups;
using linear::kGeluColumns;
using linear::kStep;
using linear::Rows;

struct Problem {
  const Tensor &x, &x_scale, &weight, &weight_scale, &bias;
  int64_t rows, depth, columns, groups;
  int processors;
};

Problem check(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& weight_scale,
              const Tensor& bias) {
  LL_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
  LL_CHECK(x_scale.dim() == 2, "x_scale must have 2 dimensions, got ", x_scale.dim());
  LL_CHECK(weight.dim() == 2, "weight must have 2 dimensions, got ", weight.dim());
  const int64_t rows = x.size(0), depth = x.size(1), columns = weight.size(0), groups = x_scale.size(0);
  check_tensor(x, "x", {rows, depth}, ScalarType::Char, x);
  check_tensor(x_scale, "x_scale", {groups, rows}, ScalarType::Float, x, sizeof(float));
  check_tensor(weight, "weight", {columns, depth}, ScalarType::Char, x);
  check_tensor(weight_scale, "weight_scale", {columns}, ScalarType::Float, x);
  check_tensor(bias, "bias", {columns}, ScalarType::BFloat16, x);
  LL_CHECK(depth > 0 && depth % kStep == 0, "x must have rows of a multiple of ", kStep, " elements, got ", depth);
  LL_CHECK(groups > 0 && depth % (groups * kStep) == 0, "x_scale must have groups of a multiple of ", kStep,
           " elements, got ", groups, " groups of ", depth);
  LL_CHECK(columns > 0 && columns % 32 == 0, "weight must have a multiple of 32 rows, got ", columns);
  LL_CHECK(rows <= INT32_MAX / 2 && columns <= INT32_MAX / 2, "x and weight must have fewer rows");
  return {x, x_scale, weight, weight_scale, bias, rows, depth, columns, groups, processors(x.get_device_index())};
}

template <class C>
linear::Tiles tiles_of(const Problem& m) {
  return {int(m.rows), int(m.columns), C::kColumns};
}

template <class C>
void run(const Problem& m, const Tensor& out, float* out_scale) {
  const linear::Params p{data<const float>(m.x_scale),
                         data<const float>(m.weight_scale),
                         data<const bf16>(m.bias),
                         out.data_ptr(),
                         out_scale,
                         int(m.rows),
                         int(m.columns),
                         int(m.depth / kStep),
                         int(m.depth / m.groups / kStep),
                         tiles_of<C>(m)};
  const auto map = [&](const Tensor& t, int64_t rows, int box_rows) {
    return sm90::matrix_map(data<const int8_t>(t), rows, m.depth, m.depth, box_rows);
  };
  LL_CUDA_CHECK(linear::launch<C>(map(m.x, m.rows, linear::kTileRows), map(m.weight, m.columns, C::kPart), p,
                                  m.processors / linear::kCluster, current_stream(m.x.get_device_index())));
}

// Waves of tiles times their width: what a product takes by these tiles.
template <class C>
int64_t cost(const Problem& m) {
  return int64_t(ceil_div(tiles_of<C>(m).sets(), m.processors / linear::kCluster)) * C::kColumns;
}

template <class A, class B>
void run_cheaper(const Problem& m, const Tensor& out) {
  cost<A>(m) <= cost<B>(m) ? run<A>(m, out, nullptr) : run<B>(m, out, nullptr);
}

Tensor int8_linear(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& weight_scale,
                   const Tensor& bias) {
  const Problem m = check(x, x_scale, weight, weight_scale, bias);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::new_empty(x, {m.rows, m.columns}, ScalarType::BFloat16);
  if (m.rows == 0) return out;
  m.groups > 1 ? run_cheaper<Groups<160>, Groups<128>>(m, out) : run_cheaper<Rows<224>, Rows<192>>(m, out);
  return out;
}

std::tuple<Tensor, Tensor> int8_linear_gelu(const Tensor& x, const Tensor& x_scale, const Tensor& weight,
                                            const Tensor& weight_scale, const Tensor& bias, int64_t groups) {
  const Problem m = check(x, x_scale, weight, weight_scale, bias);
  LL_CHECK(m.groups == 1, "x_scale must have one group, got ", m.groups);
  LL_CHECK(groups * kGeluColumns == m.columns, "groups must be of ", kGeluColumns, " of weight's ", m.columns,
           " rows, got ", groups);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::new_empty(x, {m.rows, m.columns}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {groups, m.rows}, ScalarType::Float);
  if (m.rows > 0) run<Gelu>(m, out, data<float>(scale));
  return {out, scale};
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("int8_linear", TORCH_BOX(&longlive::int8_linear));
  m.impl("int8_linear_gelu", TORCH_BOX(&longlive::int8_linear_gelu));
}
