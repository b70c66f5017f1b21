// csrc/linear/int8_linear.cuh itself, on the emulator, against float64. Run by tests/kernels/test_int8_linear.py.
#include "linear/int8_linear.cuh"

#include <cmath>
#include <limits>
#include <vector>

using namespace longlive::linear;
using longlive::bf16;

std::mt19937 source{11};
int draw(int a, int b) { return std::uniform_int_distribution<int>(a, b)(source); }

struct Case {
  int rows, columns, groups, group_steps, clusters;
};

std::vector<int8_t> bytes(size_t n) {
  std::vector<int8_t> x(n);
  for (int8_t& value : x) value = int8_t(draw(-127, 127));
  return x;
}
std::vector<float> scales(size_t n) {
  std::vector<float> x(n);
  for (float& value : x) value = float(draw(1, 1000)) * 1e-4f;
  return x;
}

// Row of the packed weight that holds row m of the plain one.
int packed(int m) { return m / 32 * 32 + m % 8 / 2 * 8 + m % 32 / 8 * 2 + m % 2; }

template <class C>
bool check(const Case& c) {
  constexpr bool kGelu = C::kResult == Result::kGelu;
  const int depth = c.groups * c.group_steps * kStep;
  const auto x = bytes(size_t(c.rows) * depth), weight = bytes(size_t(c.columns) * depth);
  const auto x_scale = scales(size_t(c.groups) * c.rows), weight_scale = scales(c.columns);
  std::vector<uint16_t> bias(c.columns);
  for (uint16_t& value : bias) value = narrow(float(draw(-100, 100)));

  const size_t size = size_t(c.rows) * c.columns;
  std::vector<uint16_t> out(size + 256 * c.columns, 0x7fff);  // nothing may be written after the last row
  std::vector<int8_t> out8(size + 256 * c.columns, -128);
  std::vector<float> out_scale(size_t(c.columns) / C::kColumns * c.rows + 256, NAN);
  const Tiles tiles(c.rows, c.columns, C::kColumns, C::kCluster);
  const Params p{x_scale.data(),
                 weight_scale.data(),
                 reinterpret_cast<const bf16*>(bias.data()),
                 kGelu ? static_cast<void*>(out8.data()) : out.data(),
                 out_scale.data(),
                 c.rows,
                 c.columns,
                 c.groups * c.group_steps,
                 c.group_steps,
                 tiles};
  const auto map = [&](const std::vector<int8_t>& t, int rows, int box_rows) {
    return longlive::sm90::matrix_map(t.data(), rows, depth, depth, box_rows);
  };
  const auto error = launch<C>(map(x, c.rows, kTileRows), map(weight, c.columns, C::kPart), p, c.clusters, nullptr);
  emulator::require(error == cudaSuccess, "no launch");

  for (size_t i = size; i < out.size(); ++i) emulator::require(out[i] == 0x7fff && out8[i] == -128, "a row too many");
  const auto fail = [&](int row, int column, double got, double want) {
    std::printf("%g instead of %g at %d, %d: rows %d, columns %d, groups %d of %d steps, clusters %d\n", got, want, row,
                column, c.rows, c.columns, c.groups, c.group_steps, c.clusters);
    return false;
  };
  for (int row = 0; row < c.rows; ++row)
    for (int column = 0; column < c.columns; ++column) {
      double y = 0;
      const int8_t *a = &x[size_t(row) * depth], *b = &weight[size_t(packed(column)) * depth];
      for (int g = 0, k = 0; g < c.groups; ++g) {
        int sum = 0;
        for (const int end = k + c.group_steps * kStep; k < end; ++k) sum += a[k] * b[k];
        y += double(sum) * x_scale[size_t(g) * c.rows + row];
      }
      y = y * weight_scale[column] + widen(bias[column]);
      const size_t at = size_t(row) * c.columns + column;
      if constexpr (kGelu) {
        y *= 0.5 * (1 + std::tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)));
        const double scale = out_scale[size_t(column / C::kColumns) * c.rows + row];
        if (!(std::abs(out8[at] * scale - y) <= 0.55 * scale + 1e-4 * std::abs(y)))
          return fail(row, column, out8[at] * scale, y);
      } else {
        if (!(std::abs(widen(out[at]) - y) <= std::abs(y) / 250 + 1e-3)) return fail(row, column, widen(out[at]), y);
      }
    }
  return true;
}

Case draw_case(bool groups, int columns) {
  Case c{draw(1, 5) == 1 ? draw(1, 3) * kTileRows : draw(1, 300), columns, groups ? draw(1, 5) : 1,
         groups ? draw(1, 2) : draw(1, 7), draw(1, 4)};
  return c;
}

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  for (int i = 0; i < cases; ++i) {
    if (!check<Config<Scale::kRow, Result::kPlain, 32, 3>>(draw_case(false, 32 * draw(1, 4)))) return 1;
    if (!check<Config<Scale::kGroup, Result::kPlain, 32, 4>>(draw_case(true, 32 * draw(1, 4)))) return 1;
    if (!check<Config<Scale::kRow, Result::kGelu, 32, 4>>(draw_case(false, 32 * draw(1, 4)))) return 1;
    if (!check<Config<Scale::kRow, Result::kPlain, 32, 3, 4>>(draw_case(false, 32 * draw(1, 4)))) return 1;
    if (i % 16 == 0 && !check<Config<Scale::kRow, Result::kPlain, 64, 4>>(draw_case(false, 32 * draw(1, 7)))) return 1;
  }
  return 0;
}
