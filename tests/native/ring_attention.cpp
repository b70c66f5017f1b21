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
  float size = 2;  // of queries
};

std::mt19937 source{7};
int draw(int a, int b) { return std::uniform_int_distribution<int>(a, b)(source); }

std::vector<uint16_t> noise(size_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<uint16_t> x(n);
  for (uint16_t& v : x) v = narrow(normal(source));
  return x;
}

// Queries or keys [tokens, heads, 128]: as they lie in memory, and what they stand for.
struct Rows {
  std::vector<uint16_t> narrow;
  std::vector<int8_t> integers;
  std::vector<float> scale;  // [heads, scales], a group of `run` tokens
  std::vector<float> value;
  int scales = 0;

  Rows(int tokens, int heads, int run, float size = 2) : value(size_t(tokens) * heads * kHeadDim) {
    narrow = noise(value.size(), size);
    for (size_t i = 0; i < value.size(); ++i) value[i] = widen(narrow[i]);
    if (run == 0) return;
    scales = run == 1 ? tokens : longlive::ceil_div(tokens, 4 * run) * 4;
    integers.resize(value.size()), scale.resize(size_t(scales) * heads);
    const auto at = [&](int token, int head) { return value.data() + (size_t(token) * heads + head) * kHeadDim; };
    for (int head = 0; head < heads; ++head) {
      float* of = scale.data() + size_t(head) * scales;
      for (int token = 0; token < tokens; ++token) {
        float* row = at(token, head);
        if (!draw(0, 31)) std::fill(row, row + kHeadDim, 0.f);
        for (int d = 0; d < kHeadDim; ++d) of[token / run] = std::max(of[token / run], std::fabs(row[d]) / 127);
      }
      for (int token = 0; token < tokens; ++token) {
        float* row = at(token, head);
        for (int d = 0; d < kHeadDim; ++d) {
          const int x = of[token / run] > 0 ? int(std::nearbyint(row[d] / of[token / run])) : 0;
          integers[row - value.data() + d] = int8_t(x), row[d] = x * of[token / run];
        }
      }
    }
  }

  template <class T>
  longlive::sm90::TensorMap map(int tokens, int64_t columns, int box_rows) const {
    const void* data = sizeof(T) == 1 ? static_cast<const void*>(integers.data()) : narrow.data();
    return longlive::sm90::matrix_map(static_cast<const T*>(data), tokens, columns, columns * sizeof(T), box_rows);
  }
};

template <class C>
bool check(Case c) {
  using T = typename C::Key;
  constexpr int kRun = C::kInt8 ? longlive::kKeyRun : 0;
  if (C::kInt8) c.tokens = longlive::ceil_div(c.tokens, kRun) * kRun;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const int64_t columns = c.heads * kHeadDim;
  const Rows q(c.rows, c.heads, C::kInt8, c.size);
  Rows k(c.tokens, c.heads, kRun);
  auto v = noise(c.tokens * columns, 1);
  const int keys = std::clamp(c.valid, 0, c.tokens);
  std::fill(k.narrow.begin() + keys * columns, k.narrow.end(), 0x7fff);
  std::fill(v.begin() + keys * columns, v.end(), 0x7fff);
  if (C::kInt8) {
    std::fill(k.integers.begin() + keys * columns, k.integers.end(), -128);
    for (int head = 0; head < c.heads; ++head)
      std::fill(k.scale.begin() + head * k.scales + longlive::ceil_div(keys, kRun),
                k.scale.begin() + (head + 1) * k.scales, kNaN);
  }

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
                 bool(c.split_kv),
                 q.scale.data(),
                 k.scale.data(),
                 k.scales};
  Maps maps{};
  maps.q = q.map<T>(c.rows, columns, kRows);
  maps.k = k.map<T>(c.tokens, columns, C::kTileKeys);
  maps.v =
      longlive::sm90::matrix_map(reinterpret_cast<const bf16*>(v.data()), c.tokens, columns, 2 * columns, C::kTileKeys);
  emulator::require(launch<C>(maps, p, nullptr) == cudaSuccess, "no launch");

  for (size_t i = c.rows * columns; i < out.size(); ++i) emulator::require(out[i] == 0x7fff, "a row too many");
  double error = 0, norm = 0;
  std::vector<double> scores(keys);
  for (int row = 0; row < c.rows; ++row)
    for (int head = 0; head < c.heads; ++head) {
      const float* query = q.value.data() + row * columns + head * kHeadDim;
      double row_max = -INFINITY, row_sum = 0, want[kHeadDim] = {};
      for (int t = 0; t < keys; ++t) {
        double x = 0;
        for (int d = 0; d < kHeadDim; ++d) x += double(query[d]) * k.value[t * columns + head * kHeadDim + d];
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
  std::printf("relative error %g: %s, tiles of %d keys, heads %d, rows %d, tokens %d, ctas %d, ",
              std::sqrt(error / norm), C::kInt8 ? "int8" : "bfloat16", C::kTileKeys, c.heads, c.rows, c.tokens, c.ctas);
  std::printf("split_kv %d, valid %d\n", c.split_kv, c.valid);
  return false;
}

Case draw_case(int tile) {
  Case c{draw(1, 2), draw(1, 300), draw(1, 9 * tile), draw(1, 7), draw(0, 3) > 0, {}};
  c.valid = draw(0, c.tokens);
  if (!draw(0, 3)) c.valid = c.valid / tile * tile;
  if (!draw(0, 3)) c.valid = c.tokens + draw(0, 9);
  if (!draw(0, 15)) c.valid = -draw(0, 9);
  if (!draw(0, 3)) c.size = 40;  // scores that leave the first tile's range
  return c;
}

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  bool good = true;
  for (int i = 0; i < cases && good; ++i) {
    const Case c = draw_case(32);
    good = check<Config<bf16, 32, 4>>(c) && check<Config<int8_t, 32, 2, 3>>(c);
    if (i % 4 == 0) good = good && check<Config<bf16, 32, 3>>(c) && check<Config<bf16, 48, 2>>(c);
    if (i % 4 == 1) good = good && check<Config<int8_t, 64, 3, 2>>(c) && check<Config<int8_t, 96, 2, 2>>(c);
  }
  for (int i = 0; i < cases / 8 && good; ++i)
    good = check<Config<bf16, 192, 4>>(draw_case(192)) && check<Config<int8_t, 192, 2, 3>>(draw_case(192));
  return good ? 0 : 1;
}
