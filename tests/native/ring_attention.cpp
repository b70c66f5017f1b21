// csrc/attention/ring_attention.cuh itself, on the emulator, against float64. Run by
// tests/kernels/test_ring_attention.py.
#include "attention/ring_attention.cuh"

#include <limits>

#include "attention_case.h"

using namespace longlive::attention;
using longlive::bf16;

std::vector<uint16_t> rounded(std::vector<float>& x) {
  std::vector<uint16_t> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = narrow(x[i]), x[i] = widen(y[i]);
  return y;
}

template <class C>
bool check(const Case& c) {
  using Schedule = typename Params<C>::Schedule;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const int64_t columns = c.heads * kHeadDim;
  const int keys = std::clamp(c.valid, 0, c.tokens);
  auto q = noise(c.rows * columns, c.size), k = noise(c.tokens * columns, 2), v = noise(c.tokens * columns, 1);
  auto narrow_q = rounded(q), narrow_k = rounded(k), narrow_v = rounded(v);
  std::fill(narrow_k.begin() + keys * columns, narrow_k.end(), 0x7fff);
  std::fill(narrow_v.begin() + keys * columns, narrow_v.end(), 0x7fff);

  std::vector<uint16_t> out((c.rows + Schedule::kRows) * columns, 0x7fff);  // nothing may be written after the last row
  std::vector<float> partial_out(Schedule::partials(c.ctas) * Schedule::kRows * kHeadDim, kNaN);
  std::vector<float2> partial_stats(Schedule::partials(c.ctas) * Schedule::kRows, {kNaN, kNaN});
  const Params<C> p{reinterpret_cast<bf16*>(out.data()),
                    {partial_out.data(), partial_stats.data()},
                    &c.valid,
                    c.rows,
                    c.heads,
                    c.tokens,
                    c.ctas,
                    bool(c.split_kv)};
  const auto map = [columns](const std::vector<uint16_t>& x, int rows, int box_rows) {
    return longlive::sm90::matrix_map(reinterpret_cast<const bf16*>(x.data()), rows, columns, 2 * columns, box_rows);
  };
  const Maps maps{map(narrow_q, c.rows, kRows), map(narrow_k, c.tokens, C::kTileKeys),
                  map(narrow_v, c.tokens, C::kTileKeys)};
  emulator::require(launch<C>(maps, p, nullptr) == cudaSuccess, "no launch");

  for (size_t i = c.rows * columns; i < out.size(); ++i) emulator::require(out[i] == 0x7fff, "a row too many");
  const double error = error_of(c, keys, q, k, v, [&](int64_t i) { return widen(out[i]); });
  return passes(c, error, 5e-3, "bfloat16");
}

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  bool good = true;
  for (int i = 0; i < cases && good; ++i) {
    const Case c = draw_case(32);
    good = check<Config<32, 4>>(c);
    if (i % 4 == 0) good = good && check<Config<32, 3>>(c) && check<Config<48, 2>>(c);
  }
  for (int i = 0; i < cases / 8 && good; ++i) good = check<Config<192, 4>>(draw_case(192));
  return good ? 0 : 1;
}
