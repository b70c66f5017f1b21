// csrc/attention/ring_attention_fp8.cuh itself, on the emulator, against float64. Run by
// tests/kernels/test_ring_attention_fp8.py.
#include "attention/ring_attention_fp8.cuh"

#include <limits>

#include "attention_case.h"

using namespace longlive::attention::fp8;
using longlive::bf16;
using longlive::ceil_div;
using longlive::kKeyRun;
using longlive::kValueGroup;

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
};

uint8_t to_e4m3(float x) {
  uint8_t best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const auto value = [](int c) {
      const uint8_t byte = uint8_t(c);
      return longlive::sm90::decode<e4m3>(&byte);
    };
    if (std::fabs(value(code) - std::fabs(x)) < std::fabs(value(best) - std::fabs(x))) best = uint8_t(code);
  }
  return uint8_t(best | (x < 0) << 7);
}

// Values transposed, in groups.
struct Values {
  int places;
  std::vector<uint8_t> of;  // [heads, 128, places]
  std::vector<float> scale, offset;

  Values(std::vector<float>& x, int tokens, int heads, int keys)
      : places(ceil_div(tokens, kValueGroup) * kValueGroup), of(size_t(heads) * kHeadDim * places, 0x7f) {
    scale = noise(heads * kHeadDim, 1), offset = noise(heads * kHeadDim, 1);
    for (float& s : scale) s = std::exp(s) / 16;
    for (int channel = 0; channel < heads * kHeadDim; ++channel)
      for (int place = 0; place < places; ++place) {
        const int token = place / kValueGroup * kValueGroup + longlive::value_at(place % kValueGroup);
        if (token >= keys) continue;
        float& value = x[size_t(token) * heads * kHeadDim + channel];
        uint8_t& code = of[size_t(channel) * places + place];
        code = to_e4m3(value / scale[channel]);
        value = offset[channel] + scale[channel] * longlive::sm90::decode<e4m3>(&code);
      }
  }
};

template <class S>
bool check(Case c) {
  using Schedule = Params::Schedule;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  c.tokens = ceil_div(c.tokens, kKeyRun) * kKeyRun;
  const int64_t columns = c.heads * kHeadDim;
  const int keys = std::clamp(c.valid, 0, c.tokens);
  auto q = noise(c.rows * columns, c.size), k = noise(c.tokens * columns, 2), v = noise(c.tokens * columns, 1);
  for (int row = 0; row < c.rows; ++row)
    if (!draw(0, 31)) std::fill_n(q.begin() + row * columns, columns, 0.f);
  const Integers queries(q, c.rows, c.heads, 1, c.rows);
  Integers ring(k, c.tokens, c.heads, kKeyRun, ceil_div(c.tokens, 4 * kKeyRun) * 4);
  const Values values(v, c.tokens, c.heads, keys);
  std::fill(ring.of.begin() + keys * columns, ring.of.end(), -128);
  for (int head = 0; head < c.heads; ++head)
    std::fill(ring.scale.begin() + head * ring.scales + ceil_div(keys, kKeyRun),
              ring.scale.begin() + (head + 1) * ring.scales, kNaN);

  std::vector<uint16_t> out((c.rows + Schedule::kRows) * columns, 0x7fff);  // nothing may be written after the last row
  std::vector<float> partial_out(Schedule::partials(c.ctas) * Schedule::kRows * kHeadDim, kNaN);
  std::vector<float2> partial_stats(Schedule::partials(c.ctas) * Schedule::kRows, {kNaN, kNaN});
  const Params p{reinterpret_cast<bf16*>(out.data()),
                 {partial_out.data(), partial_stats.data()},
                 &c.valid,
                 c.rows,
                 c.heads,
                 c.tokens,
                 c.ctas,
                 bool(c.split_kv),
                 queries.scale.data(),
                 ring.scale.data(),
                 ring.scales,
                 values.scale.data(),
                 values.offset.data()};
  using longlive::sm90::matrix_map;
  const Maps maps{matrix_map(queries.of.data(), c.rows, columns, columns, kRows),
                  matrix_map(ring.of.data(), c.tokens, columns, columns, kTileKeys),
                  matrix_map(values.of.data(), columns, values.places, values.places, kHeadDim)};
  emulator::require(launch<S>(maps, p, nullptr) == cudaSuccess, "no launch");

  for (size_t i = c.rows * columns; i < out.size(); ++i) emulator::require(out[i] == 0x7fff, "a row too many");
  // p's own error is 3 % of the spread of values, which is more of a result that is small beside it.
  const double error = error_of(c, keys, q, k, v, [&](int64_t i) { return widen(out[i]); });
  return passes(c, error, 0.04, "8 bits");
}

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  bool good = true;
  for (int i = 0; i < cases && good; ++i)
    good = check<Shared<4, 4>>(draw_case(kTileKeys)) && check<Shared<2, 2>>(draw_case(64));
  return good ? 0 : 1;
}
