// csrc/attention/ring_attention_fp8.cuh itself, on the emulator, against float64. Run by
// tests/kernels/test_ring_attention_fp8.py.
#include "attention/ring_attention_fp8.cuh"

#include "attention_case.h"

using namespace longlive::attention::fp8;
using longlive::bf16;
using longlive::ceil_div;
using longlive::kKeyRun;
using longlive::kValueGroup;
using longlive::attention::kRows;
using longlive::attention::Maps;

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

// What the kernel should compute of all outputs, in float64 but for the codes of p: each CTA's work by its own shift,
// which follows the largest score of parts of kPart keys.
struct Model {
  const Case& c;
  const int keys;
  const Integers &q, &k;
  const std::vector<float>& v;  // [tokens, heads, 128], what they stand for
  std::vector<double> sums, p_sums;

  Model(const Case& c, int keys, const Integers& q, const Integers& k, const std::vector<float>& v)
      : c(c), keys(keys), q(q), k(k), v(v), sums(size_t(c.rows) * c.heads * kHeadDim), p_sums(sums.size() / kHeadDim) {
    const Params::Schedule schedule(c.heads, c.rows, key_tiles(), c.ctas, c.split_kv);
    for (int cta = 0; cta < c.ctas; ++cta) {
      auto cursor = schedule.start(cta);
      for (longlive::attention::WorkTile work; schedule.next(cta, cursor, work);)
        for (int row = work.row; row < work.end_row; ++row)
          add(work.head, row, work.first * kTileKeys, std::min(work.last * kTileKeys, keys));
    }
  }
  int key_tiles() const { return longlive::attention::key_tiles_of(keys, kTileKeys); }

  // In codes. The factor of a product is float32's.
  double score(int head, int row, int key) const {
    const int8_t* x = &q.of[(size_t(row) * c.heads + head) * kHeadDim];
    const int8_t* y = &k.of[(size_t(key) * c.heads + head) * kHeadDim];
    int product = 0;
    for (int d = 0; d < kHeadDim; ++d) product += x[d] * y[d];
    const float factor = q.scale[size_t(head) * q.scales + row] * float(1.4426950408889634 / std::sqrt(128.) * 8);
    return double(product) * (k.scale[head * k.scales + key / kKeyRun] * factor);
  }

  void add(int head, int row, int first, int last) {
    double shift = 0;
    for (int part = first; part < last; part += kPart) {
      const int end = std::min(part + kPart, last);
      std::vector<double> scores;
      for (int key = part; key < end; ++key) scores.push_back(score(head, row, key));
      const double largest = *std::max_element(scores.begin(), scores.end());
      if (part == first || largest - shift > 126) shift = std::ceil((largest - 118) / 8) * 8;
      for (int key = part; key < end; ++key) {
        const uint8_t code = uint8_t(std::max(std::nearbyint(scores[key - part] - shift), 0.));
        const double p = longlive::sm90::decode<e4m3>(&code) * std::exp2(shift / 8);
        const size_t at = size_t(row) * c.heads + head;
        p_sums[at] += p;
        for (int d = 0; d < kHeadDim; ++d)
          sums[at * kHeadDim + d] += p * v[(size_t(key) * c.heads + head) * kHeadDim + d];
      }
    }
  }
  double at(int64_t i) const { return p_sums[i / kHeadDim] > 0 ? sums[i] / p_sums[i / kHeadDim] : 0; }
};

// Rounded once, but for what float32 sums are off by; and but for rows with a code that float32 rounds to the other
// side, or whose shift follows 126.5 at most because a neighbour's has to.
bool agrees_with_model(const Case& c, const Model& model, const std::vector<uint16_t>& out) {
  constexpr double kOff = 1e-4;
  const auto rounded = [](double x) { return widen(narrow(float(x))); };
  int wrong = 0;
  for (size_t i = 0; i < model.sums.size(); ++i) {
    const double want = model.at(i), got = widen(out[i]);
    wrong += !(got >= rounded(want - kOff) && got <= rounded(want + kOff));
  }
  return passes(c, double(wrong) / model.sums.size(), 4e-3, "8 bits, in the share of results that are not the model's");
}

template <class S>
bool check(Case c) {
  c.tokens = ceil_div(c.tokens, kKeyRun) * kKeyRun;
  const int64_t columns = c.heads * kHeadDim;
  const int keys = std::clamp(c.valid, 0, c.tokens);
  auto q = noise(c.rows * columns, c.size), k = noise(c.tokens * columns, 2), v = noise(c.tokens * columns, 1);
  for (int row = 0; row < c.rows; ++row)
    if (!draw(0, 31)) std::fill_n(q.begin() + row * columns, columns, 0.f);
  const Integers queries(q, c.rows, c.heads, 1, c.rows);
  Integers ring(k, c.tokens, c.heads, kKeyRun, ceil_div(c.tokens, 4 * kKeyRun) * 4);
  const Values values(v, c.tokens, c.heads, keys);
  ring.spoil_from(keys, c.heads);

  Results<Params> results(c);
  Params p = results.params();
  p.q_scale = queries.scale.data(), p.k_scale = ring.scale.data(), p.k_scales = ring.scales;
  p.v_scale = values.scale.data(), p.v_offset = values.offset.data();
  using longlive::sm90::matrix_map;
  const Maps maps{matrix_map(queries.of.data(), c.rows, columns, columns, kRows),
                  matrix_map(ring.of.data(), c.tokens, columns, columns, kTileKeys),
                  matrix_map(values.of.data(), columns, values.places, values.places, kHeadDim)};
  emulator::require(launch<S>(maps, p, nullptr) == cudaSuccess, "no launch");

  results.require_no_more();
  // p's own error is 3 % of how results differ from row to row, which is less of results that have an offset.
  const double error = error_of(c, keys, q, k, v, [&](int64_t i) { return widen(results.out[i]); });
  return passes(c, error, 0.02, "8 bits") && agrees_with_model(c, Model(c, keys, queries, ring, v), results.out);
}

int main(int, char** argv) {
  const int cases = std::atoi(argv[1]);
  bool good = true;
  for (int i = 0; i < cases && good; ++i)
    good = check<Shared<4, 4>>(draw_case(kTileKeys)) && check<Shared<2, 2>>(draw_case(64));
  return good ? 0 : 1;
}
