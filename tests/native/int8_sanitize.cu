// csrc/linear/int8_linear.cuh without torch: every kind that is launched, at ragged sizes. See sanitize.h.
//   nvcc -O2 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo -Icsrc
//        tests/native/int8_sanitize.cu -o int8_sanitize && compute-sanitizer --tool racecheck ./int8_sanitize
#include "linear/int8_linear.cuh"
#include "sanitize.h"

using namespace longlive::linear;
using longlive::bf16;

// Row of the packed weight that holds row m of the plain one.
int packed(int m) { return m / 32 * 32 + m % 8 / 2 * 8 + m % 32 / 8 * 2 + m % 2; }

// `clusters` at most: fewer than there are tiles, so that a CTA takes several.
template <class C>
bool agrees(int rows, int columns, int groups, int clusters, int group_steps = C::kScale == Scale::kGroup ? 2 : 3) {
  constexpr bool kGelu = C::kResult == Result::kGelu;
  const int depth = groups * group_steps * kStep;
  Array<int8_t> x(size_t(rows) * depth), weight(size_t(columns) * depth), out8(size_t(rows) * columns);
  Array<float> x_scale(size_t(groups) * rows), weight_scale(columns);
  Array<float> out_scale(size_t(longlive::ceil_div(columns, C::kColumns)) * rows);
  Array<bf16> bias(columns), out(size_t(rows) * columns);
  const auto scale = [] { return float(draw(1, 1000)) * 1e-4f; };
  x.fill([] { return int8_t(draw(-127, 127)); }), weight.fill([] { return int8_t(draw(-127, 127)); });
  x_scale.fill(scale), weight_scale.fill(scale);
  bias.fill([] { return __float2bfloat16(float(draw(-100, 100))); });

  const Params p{x_scale.device,   weight_scale.device,
                 bias.device,      kGelu ? static_cast<void*>(out8.device) : out.device,
                 out_scale.device, rows,
                 columns,          depth / kStep,
                 group_steps,      Tiles(rows, columns, C::kColumns)};
  const auto map = [&](const Array<int8_t>& t, int rows, int box_rows) {
    return longlive::sm90::matrix_map(t.device, rows, depth, depth, box_rows);
  };
  check(launch<C>(map(x, rows, kTileRows), map(weight, columns, C::kPart), p, clusters, nullptr), "launch");
  check(cudaDeviceSynchronize(), "kernel");
  kGelu ? out8.copy_out() : out.copy_out();
  out_scale.copy_out();

  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      double y = 0;
      const int8_t *a = &x.host[size_t(row) * depth], *b = &weight.host[size_t(packed(column)) * depth];
      for (int g = 0, k = 0; g < groups; ++g) {
        int sum = 0;
        for (const int end = k + group_steps * kStep; k < end; ++k) sum += a[k] * b[k];
        y += double(sum) * x_scale.host[size_t(g) * rows + row];
      }
      y = y * weight_scale.host[column] + __bfloat162float(bias.host[column]);
      const size_t at = size_t(row) * columns + column;
      double got = __bfloat162float(out.host[at]), off = std::abs(y) / 250 + 1e-3;
      if (kGelu) {
        const double step = out_scale.host[size_t(column / C::kColumns) * rows + row];
        y = y / 2 * (1 + std::tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)));
        got = out8.host[at] * step, off = 0.52 * step + 2e-3 * std::abs(y) + 1e-2;
      }
      if (!(std::abs(got - y) <= off)) {
        std::printf("%g instead of %g at %d, %d: rows %d, columns %d, groups %d, tiles of %d\n", got, y, row, column,
                    rows, columns, groups, C::kColumns);
        return false;
      }
    }
  return true;
}

int main() {
  const bool good = agrees<Rows<224>>(129, 224 + 64, 1, 1) && agrees<Rows<224>>(1, 32, 1, 9) &&
                    agrees<Rows<192>>(300, 192 + 96, 1, 2) && agrees<Rows<192>>(128, 192, 1, 1) &&
                    agrees<Groups<160>>(129, 160 + 32, 3, 1) && agrees<Groups<160>>(257, 320, 2, 9) &&
                    agrees<Groups<128>>(300, 128 + 96, 3, 2) && agrees<Groups<128>>(65, 128, 1, 1) &&
                    agrees<Groups<128>>(129, 256, 4, 1) && agrees<Groups<160>>(300, 160, 3, 1, 7) &&
                    agrees<Gelu>(129, 512, 1, 1) && agrees<Gelu>(300, 256, 1, 9) && agrees<Gelu>(7, 768, 1, 1);
  std::printf(good ? "int8_linear agrees\n" : "int8_linear differs\n");
  return good ? 0 : 1;
}
