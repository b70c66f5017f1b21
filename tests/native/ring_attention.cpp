// csrc/attention/ring_attention.cuh itself, on the emulator, against float64. Run by
// tests/kernels/test_ring_attention.py.
#include "attention/ring_attention.cuh"

#include <cmath>
#include <limits>
#include <vector>

using namespace longlive::attention;
using longlive::bf16;
using longlive::kHeadDim;

struct Case {
  int heads, rows, tokens, ctas, split_kv, valid;
};

std::mt19937 source{7};
int draw(int a, int b) { return std::uniform_int_distribution<int>(a, b)(source); }

std::vector<uint16_t> noise(size_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<uint16_t> x(n);
  for (uint16_t& v : x) v = narrow(normal(source));
  return x;
}

template <class C>
bool check(const Case& c) {
  const int64_t columns = c.heads * kHeadDim;
  const auto q = noise(c.rows * columns, 2);
  auto k = noise(c.tokens * columns, 2), v = noise(c.tokens * columns, 1);
  const int keys = std::clamp(c.valid, 0, c.tokens);
  std::fill(k.begin() + keys * columns, k.end(), 0x7fff);
  std::fill(v.begin() + keys * columns, v.end(), 0x7fff);

  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  std::vector<uint16_t> out((c.rows + kTileRows) * columns, 0x7fff);  // nothing may be written after the last row
  std::vector<float> partial_out(Schedule::partials(c.ctas) * kTileRows * kHeadDim, kNaN);
  std::vector<float2> partial_stats(Schedule::partials(c.ctas) * kTileRows, {kNaN, kNaN});
  const Params p{reinterpret_cast<bf16*>(out.data()),
                 partial_out.data(),
                 partial_stats.data(),
                 &c.valid,
                 c.rows,
                 c.heads,
                 c.tokens,
                 c.ctas,
                 bool(c.split_kv)};
  const auto map = [&](const std::vector<uint16_t>& x, int rows, int box_rows) {
    return longlive::sm90::matrix_map(reinterpret_cast<const bf16*>(x.data()), rows, columns, 2 * columns, box_rows);
  };
  const auto error_code =
      launch<C>(map(q, c.rows, kRows), map(k, c.tokens, C::kTileKeys), map(v, c.tokens, C::kTileKeys), p, nullptr);
  emulator::require(error_code == cudaSuccess, "no launch");

  for (size_t i = c.rows * columns; i < out.size(); ++i) emulator::require(out[i] == 0x7fff, "a row too many");
  double error = 0, norm = 0;
  std::vector<double> scores(keys);
  for (int row = 0; row < c.rows; ++row)
    for (int head = 0; head < c.heads; ++head) {
      const uint16_t* query = q.data() + row * columns + head * kHeadDim;
      double row_max = -INFINITY, row_sum = 0, want[kHeadDim] = {};
      for (int t = 0; t < keys; ++t) {
        double x = 0;
        for (int d = 0; d < kHeadDim; ++d) x += double(widen(query[d])) * widen(k[t * columns + head * kHeadDim + d]);
        scores[t] = x / std::sqrt(double(kHeadDim)), row_max = std::max(row_max, scores[t]);
      }
      for (int t = 0; t < keys; ++t) {
        const double p = std::exp(scores[t] - row_max);
        row_sum += p;
        for (int d = 0; d < kHeadDim; ++d) want[d] += p * widen(v[t * columns + head * kHeadDim + d]);
      }
      for (int d = 0; d < kHeadDim; ++d) {
        const double truth = row_sum > 0 ? want[d] / row_sum : 0;
        const double e = widen(out[row * columns + head * kHeadDim + d]) - truth;
        error += e * e, norm += truth * truth;
      }
    }
  if (std::sqrt(error) <= 5e-3 * std::sqrt(norm)) return true;  // NaN fails
  std::printf("relative error %g: tiles of %d keys, heads %d, rows %d, tokens %d, ctas %d, ", std::sqrt(error / norm),
              C::kTileKeys, c.heads, c.rows, c.tokens, c.ctas);
  std::printf("split_kv %d, valid %d\n", c.split_kv, c.valid);
  return false;
}

Case draw_case(int tile) {
  Case c{draw(1, 2), draw(1, 300), draw(1, 9 * tile), draw(1, 7), draw(0, 3) > 0, {}};
  c.valid = draw(0, c.tokens);
  if (!draw(0, 3)) c.valid = c.valid / tile * tile;
  if (!draw(0, 3)) c.valid = c.tokens + draw(0, 9);
  if (!draw(0, 15)) c.valid = -draw(0, 9);
  return c;
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
