// csrc/linear/int8_linear.cuh itself, on the emulator, against float64. Run by tests/kernels/test_int8_linear.py.
#include "linear/int8_linear.cuh"

#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <vector>

using namespace longlive::linear;
using longlive::bf16;

std::mt19937 source{11};
int draw(int a, int b) { return std::uniform_int_distribution<int>(a, b)(source); }

struct Case {
  int rows, columns, groups, group_steps, clusters;
  bool hard;  // no bias, scales of any magnitude, and some that are not finite
};

// An array that ends where its pages do: what reads past the end crashes.
template <class T>
class Input {
 public:
  Input(size_t n, T (*draw)()) : pages_((n * sizeof(T) + kPage - 1) / kPage * kPage) {
    memory_ = static_cast<uint8_t*>(mmap(nullptr, pages_ + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    emulator::require(memory_ != MAP_FAILED && !mprotect(memory_, pages_, PROT_READ | PROT_WRITE), "no memory");
    data_ = reinterpret_cast<T*>(memory_ + pages_) - n;
    std::generate_n(data_, n, draw);
  }
  Input(const Input&) = delete;
  ~Input() { munmap(memory_, pages_ + kPage); }
  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr size_t kPage = 4096;
  size_t pages_;
  uint8_t* memory_;
  T* data_;
};

int8_t draw_byte() { return int8_t(draw(-127, 127)); }
float draw_scale() { return float(draw(1, 1000)) * 1e-4f; }
float draw_hard_scale() {
  switch (draw(0, 15)) {
    case 0: return 0;
    case 1: return std::numeric_limits<float>::infinity();
    case 2: return std::numeric_limits<float>::quiet_NaN();
    default: return draw_scale() * std::pow(10.f, float(draw(-9, 2)));
  }
}
uint16_t draw_bias() { return narrow(float(draw(-100, 100))); }
uint16_t no_bias() { return 0; }

// Row of the packed weight that holds row m of the plain one.
int packed(int m) { return m / 32 * 32 + m % 8 / 2 * 8 + m % 32 / 8 * 2 + m % 2; }

template <class C>
bool check(const Case& c) {
  constexpr bool kGelu = C::kResult == Result::kGelu;
  const int depth = c.groups * c.group_steps * kStep;
  const Input x(size_t(c.rows) * depth, draw_byte), weight(size_t(c.columns) * depth, draw_byte);
  const Input x_scale(size_t(c.groups) * c.rows, c.hard ? draw_hard_scale : draw_scale);
  const Input weight_scale(c.columns, draw_scale), bias(c.columns, c.hard ? no_bias : draw_bias);
  if (c.hard && draw(0, 2) == 0) bias[draw(0, c.columns - 1)] = narrow(draw(0, 1) ? NAN : INFINITY);

  const size_t size = size_t(c.rows) * c.columns;
  std::vector<uint16_t> out(size + 256 * c.columns, 0x7fff);  // nothing may be written after the last row
  std::vector<int8_t> out8(size + 256 * c.columns, -128);
  std::vector<float> out_scale(size_t(c.columns) / C::kColumns * c.rows + 256, NAN);
  const Tiles tiles(c.rows, c.columns, C::kColumns);
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
  const auto map = [&](const Input<int8_t>& t, int rows, int box_rows) {
    return longlive::sm90::matrix_map(t.data(), rows, depth, depth, box_rows);
  };
  const auto error = launch<C>(map(x, c.rows, kTileRows), map(weight, c.columns, C::kPart), p, c.clusters, nullptr);
  emulator::require(error == cudaSuccess, "no launch");

  const auto product = [&](int column, int row) {
    double y = 0;
    const int8_t *a = &x[size_t(row) * depth], *b = &weight[size_t(packed(column)) * depth];
    for (int g = 0, k = 0; g < c.groups; ++g) {
      int sum = 0;
      for (const int end = k + c.group_steps * kStep; k < end; ++k) sum += a[k] * b[k];
      y += double(sum) * x_scale[size_t(g) * c.rows + row];
    }
    return y * weight_scale[column] + widen(bias[column]);
  };
  for (size_t i = size; i < out.size(); ++i) emulator::require(out[i] == 0x7fff && out8[i] == -128, "a row too many");
  const auto fail = [&](int row, int column, double got, double want) {
    std::printf("%g instead of %g at %d, %d: rows %d, columns %d, groups %d of %d steps, clusters %d\n", got, want, row,
                column, c.rows, c.columns, c.groups, c.group_steps, c.clusters);
    return false;
  };
  for (int row = 0; row < c.rows; ++row)
    for (int first = 0; first < c.columns; first += C::kColumns) {
      const int end = std::min(first + C::kColumns, c.columns);
      const double scale = out_scale[size_t(first / C::kColumns) * c.rows + row];
      int largest = 0;
      bool in_range = true, zero = true;
      for (int column = first; column < end; ++column) {
        const double y = product(column, row);
        const size_t at = size_t(row) * c.columns + column;
        if constexpr (kGelu) {
          largest = std::max(largest, std::abs(out8[at]));
          in_range = in_range && std::abs(y) < 65520;  // rounds to a half
          zero = zero && y == 0;
          const double wanted = y * 0.5 * (1 + std::tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)));
          // A half has 11 bits, of which the sum 1 + tanh loses some below zero.
          const double off = 0.52 * scale + 1.3e-3 * std::abs(wanted) + std::max(-y, 0.0) / 2048 + 1e-7;
          if (std::isfinite(scale) && !(std::abs(out8[at] * scale - wanted) <= off))
            return fail(row, column, out8[at] * scale, wanted);
        } else if (std::isfinite(y) ? !(std::abs(widen(out[at]) - y) <= std::abs(y) / 250 + 1e-3)
                                    : std::isfinite(widen(out[at]))) {
          return fail(row, column, widen(out[at]), y);
        }
      }
      if constexpr (kGelu) {
        const bool whole = largest >= 126 || scale == 0 || (scale == std::ldexp(1, -15) && !zero);  // the least scale
        if (std::isfinite(scale) != in_range || (in_range && !whole)) return fail(row, first, scale, largest);
      }
    }
  return true;
}

int draw_rows() {
  const int edges[] = {1, 8, 63, 64, 65, 127, 128, 129, 255, 256, 257, 384};
  return draw(0, 2) ? draw(1, 300) : edges[draw(0, 11)];
}
Case draw_case(bool groups, int columns) {
  return {draw_rows(), columns, groups ? draw(1, 5) : 1, groups ? draw(1, 5) : draw(1, 7), draw(1, 4), draw(0, 3) == 0};
}

int main(int, char** argv) {
  using enum Scale;
  using enum Result;
  const int cases = std::atoi(argv[1]);
  for (int i = 0; i < cases; ++i) {
    if (!check<Config<kRow, kPlain, 32, 3>>(draw_case(false, 32 * draw(1, 4)))) return 1;
    if (!check<Config<kGroup, kPlain, 32, 4, 1>>(draw_case(true, 32 * draw(1, 4)))) return 1;
    if (!check<Config<kGroup, kPlain, 32, 4, 2>>(draw_case(true, 32 * draw(1, 4)))) return 1;
    if (!check<Config<kRow, kGelu, 32, 4>>(draw_case(false, 32 * draw(1, 4)))) return 1;
    // Tiles that end beyond the last column.
    if (i % 8 == 0 && !check<Config<kRow, kPlain, 64, 2>>(draw_case(false, 32 * draw(1, 7)))) return 1;
    if (i % 8 == 2 && !check<Config<kGroup, kPlain, 96, 3, 1>>(draw_case(true, 32 * draw(1, 7)))) return 1;
    if (i % 8 == 4 && !check<Config<kGroup, kPlain, 64, 2, 2>>(draw_case(true, 32 * draw(1, 7)))) return 1;
    // As they are launched.
    if (i == 20 && !check<Rows<224>>({129, 224 + 64, 1, 2, 1, false})) return 1;
    if (i == 30 && !check<Groups<160>>({129, 192, 3, 2, 1, false})) return 1;
    if (i == 35 && !check<Groups<128>>({129, 160, 4, 2, 1, false})) return 1;
    if (i == 40 && !check<Gelu>({129, 512, 1, 2, 1, true})) return 1;
  }
  return 0;
}
