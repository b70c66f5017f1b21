#pragma once
// What tests of attention over the ring share: random cases, what a kernel writes, and the truth in float64.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "attention/ring.cuh"
#include "emulator.h"

using longlive::kHeadDim;

struct Case {
  int heads, rows, tokens, ctas, split_kv, valid;
  float size = 2;  // of queries
};

inline std::mt19937 source{7};
inline int draw(int a, int b) { return std::uniform_int_distribution<int>(a, b)(source); }

inline std::vector<float> noise(size_t n, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(n);
  for (float& v : x) v = normal(source);
  return x;
}

inline Case draw_case(int tile) {
  Case c{draw(1, 2), draw(1, 300), draw(1, 9 * tile), draw(1, 7), draw(0, 3) > 0, {}};
  c.valid = draw(0, c.tokens);
  if (!draw(0, 3)) c.valid = c.valid / tile * tile + draw(-1, 1);
  if (!draw(0, 3)) c.valid = c.tokens + draw(0, 9);
  if (!draw(0, 15)) c.valid = -draw(0, 9);
  if (!draw(0, 3)) c.size = 40;  // scores that leave the first tile's range
  return c;
}

// Queries or keys [tokens, heads, 128] as integers with a scale for `run` tokens; x becomes what they stand for.
struct Integers {
  std::vector<int8_t> of;
  std::vector<float> scale;  // [heads, scales]
  int scales;

  Integers(std::vector<float>& x, int tokens, int heads, int run, int scales)
      : of(x.size()), scale(size_t(scales) * heads), scales(scales) {
    const auto each = [&](int head, auto what) {
      for (int token = 0; token < tokens; ++token) {
        const size_t at = (size_t(token) * heads + head) * kHeadDim;
        for (int d = 0; d < kHeadDim; ++d) what(scale[size_t(head) * scales + token / run], at + d);
      }
    };
    for (int head = 0; head < heads; ++head) {
      each(head, [&](float& s, size_t i) { s = std::max(s, std::fabs(x[i]) / 127); });
      each(head, [&](float& s, size_t i) {
        const int n = s > 0 ? int(std::nearbyint(x[i] / s)) : 0;
        of[i] = int8_t(n), x[i] = n * s;
      });
    }
  }

  // Keys from `count` on are not valid: integers that do not occur, and NaN where a whole run is not.
  void spoil_from(int count, int heads) {
    std::fill(of.begin() + int64_t(count) * heads * kHeadDim, of.end(), -128);
    for (int head = 0; head < heads; ++head)
      std::fill(scale.begin() + head * scales + longlive::ceil_div(count, longlive::kKeyRun),
                scale.begin() + (head + 1) * scales, std::numeric_limits<float>::quiet_NaN());
  }
};

// What a kernel with these parameters writes; NaN before.
template <class Params>
struct Results {
  using Schedule = typename Params::Schedule;
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

  const Case& c;
  const size_t size = size_t(c.rows) * c.heads * kHeadDim;
  std::vector<uint16_t> out;
  std::vector<float> partial_out;
  std::vector<float2> partial_stats;

  explicit Results(const Case& c)
      : c(c),
        out(size + Schedule::kRows * c.heads * kHeadDim, 0x7fff),
        partial_out(Schedule::partials(c.ctas) * Schedule::kRows * kHeadDim, kNaN),
        partial_stats(Schedule::partials(c.ctas) * Schedule::kRows, {kNaN, kNaN}) {}

  // The parameters that all kinds have.
  Params params() {
    Params p{};
    p.out = reinterpret_cast<longlive::bf16*>(out.data());
    p.partials = {partial_out.data(), partial_stats.data()};
    p.valid = &c.valid, p.rows = c.rows, p.heads = c.heads, p.tokens = c.tokens;
    p.ctas = c.ctas, p.split_kv = c.split_kv;
    return p;
  }
  void require_no_more() const {
    for (size_t i = size; i < out.size(); ++i) emulator::require(out[i] == 0x7fff, "a row too many");
  }
};

// Relative error of out against softmax(q k^T / sqrt(128)) v over the first `keys` tokens; all [.., heads, 128].
template <class Out>
double error_of(const Case& c, int keys, const std::vector<float>& q, const std::vector<float>& k,
                const std::vector<float>& v, const Out& out) {
  const int64_t columns = c.heads * kHeadDim;
  double error = 0, norm = 0;
  std::vector<double> scores(keys);
  for (int row = 0; row < c.rows; ++row)
    for (int head = 0; head < c.heads; ++head) {
      const float* query = q.data() + row * columns + head * kHeadDim;
      double row_max = -INFINITY, row_sum = 0, want[kHeadDim] = {};
      for (int t = 0; t < keys; ++t) {
        double x = 0;
        for (int d = 0; d < kHeadDim; ++d) x += double(query[d]) * k[t * columns + head * kHeadDim + d];
        scores[t] = x / std::sqrt(double(kHeadDim)), row_max = std::max(row_max, scores[t]);
      }
      for (int t = 0; t < keys; ++t) {
        const double p = std::exp(scores[t] - row_max);
        row_sum += p;
        for (int d = 0; d < kHeadDim; ++d) want[d] += p * v[t * columns + head * kHeadDim + d];
      }
      for (int d = 0; d < kHeadDim; ++d) {
        const double truth = row_sum > 0 ? want[d] / row_sum : 0;
        const double e = out(row * columns + head * kHeadDim + d) - truth;
        error += e * e, norm += truth * truth;
      }
    }
  return norm > 0 ? std::sqrt(error / norm) : error;  // NaN stays
}

inline bool passes(const Case& c, double error, double bound, const char* what) {
  if (error <= bound) return true;
  std::printf("relative error %g of %s: heads %d, rows %d, tokens %d, ctas %d, split_kv %d, valid %d, size %g\n", error,
              what, c.heads, c.rows, c.tokens, c.ctas, c.split_kv, c.valid, c.size);
  return false;
}
