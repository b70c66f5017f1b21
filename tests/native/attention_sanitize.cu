// csrc/attention/ring_attention.cuh and ring_attention_fp8.cuh without torch: one row, one key, no key, short last
// tiles, split-KV, several tiles a CTA, and scores that leave the first tile's range. What is not valid holds NaN. See
// sanitize.h.
//   nvcc -O2 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo -Icsrc
//        tests/native/attention_sanitize.cu -o attention_sanitize
//   compute-sanitizer --tool racecheck ./attention_sanitize
#include "attention/ring_attention.cuh"
#include "attention/ring_attention_fp8.cuh"
#include "sanitize.h"

namespace attention = longlive::attention;
namespace fp8 = attention::fp8;
using longlive::bf16;
using longlive::ceil_div;
using longlive::kHeadDim;
using longlive::kKeyRun;
using longlive::kValueGroup;
using longlive::sm90::matrix_map;

struct Case {
  int heads, rows, tokens, valid, ctas;
  bool split_kv = false;
  float size = 2;  // of queries

  int keys() const { return std::clamp(valid, 0, tokens); }
  int64_t columns() const { return heads * kHeadDim; }
};

// A kind has the numbers `q` [rows, heads, 128], `k` and `v` [tokens, heads, 128] that it stands for, its kernel's
// parameters but for those that all kinds share, and its maps. As csrc/attention/*.cu have them:
struct Bf16 {
  using C = attention::Config<bf16, 192, 4>;
  using Params = attention::Params<C>;
  static constexpr const char* kName = "bfloat16";
  static constexpr double kError = 5e-3, kOfSpread = 0;

  std::vector<float> q, k, v;
  Array<bf16> fused, keys, values;  // queries lie beside keys and values, in rows three times as long
  const Case& c;

  explicit Bf16(const Case& c)
      : q(c.rows * c.columns()),
        k(c.tokens * c.columns()),
        v(k.size()),
        fused(3 * q.size() - 2 * c.columns(), rounded<bf16>(kNaN)),
        keys(k.size(), rounded<bf16>(kNaN)),
        values(k.size(), rounded<bf16>(kNaN)),
        c(c) {
    const auto put = [](bf16& at, float& x, float size) { at = rounded<bf16>(normal(size)), x = float(wide(at)); };
    for (size_t i = 0; i < q.size(); ++i)
      put(fused.host[i / c.columns() * 3 * c.columns() + i % c.columns()], q[i], c.size);
    for (int i = 0; i < c.keys() * c.columns(); ++i) put(keys.host[i], k[i], 2), put(values.host[i], v[i], 1);
    fused.copy_in(), keys.copy_in(), values.copy_in();
  }
  void set(Params&) const {}
  cudaError_t launch(const Params& p) const {
    const int64_t bytes = c.columns() * sizeof(bf16);
    const attention::Maps maps{matrix_map(fused.device, c.rows, c.columns(), 3 * bytes, attention::kRows),
                               matrix_map(keys.device, c.tokens, c.columns(), bytes, C::kTileKeys),
                               matrix_map(values.device, c.tokens, c.columns(), bytes, C::kTileKeys)};
    return attention::launch<C>(maps, p, nullptr);
  }
};

// An e4m3 number.
float number(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float size = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
  return code & 0x80 ? -size : size;
}

// Queries and keys: integers of any size, and scales that make numbers of theirs as large as bfloat16's. There are
// scales to spare.
struct Integers {
  std::vector<float> q, k, v;
  const int scales;
  Array<int8_t> queries, keys;
  Array<float> q_scale, k_scale;
  const Case& c;

  explicit Integers(const Case& c)
      : q(c.rows * c.columns()),
        k(c.tokens * c.columns()),
        v(k.size()),
        scales(ceil_div(c.tokens, 4 * kKeyRun) * 4),
        queries(q.size()),
        keys(k.size(), kUnwritten),
        q_scale(size_t(c.heads) * c.rows),
        k_scale(size_t(c.heads) * scales, kNaN),
        c(c) {
    const auto integer = [] { return int8_t(draw(-127, 127)); };
    queries.fill(integer);
    q_scale.fill([&] { return c.size / 73 * float(draw(5, 15)) / 10; });
    for (int i = 0; i < c.keys() * c.columns(); ++i) keys.host[i] = integer();
    for (int head = 0; head < c.heads; ++head)
      for (int run = 0; run * kKeyRun < c.keys(); ++run)
        k_scale.host[head * scales + run] = 2.f / 73 * float(draw(0, 15)) / 10;
    keys.copy_in(), k_scale.copy_in();
    for (size_t i = 0; i < q.size(); ++i)
      q[i] = queries.host[i] * q_scale.host[i % c.columns() / kHeadDim * c.rows + i / c.columns()];
    for (int i = 0; i < c.keys() * c.columns(); ++i)
      k[i] = keys.host[i] * k_scale.host[i % c.columns() / kHeadDim * scales + i / c.columns() / kKeyRun];
  }
  template <class Params>
  void set_scales(Params& p) const {
    p.q_scale = q_scale.device, p.k_scale = k_scale.device, p.k_scales = scales;
  }
  longlive::sm90::TensorMap query_map(int box) const {
    return matrix_map(queries.device, c.rows, c.columns(), c.columns(), box);
  }
  longlive::sm90::TensorMap key_map(int box) const {
    return matrix_map(keys.device, c.tokens, c.columns(), c.columns(), box);
  }
};

// Values in bfloat16.
struct Int8 : Integers {
  using C = attention::Config<int8_t, 192, 2, 3>;
  using Params = attention::Params<C>;
  static constexpr const char* kName = "int8";
  static constexpr double kError = 5e-3, kOfSpread = 0;

  Array<bf16> values;

  explicit Int8(const Case& c) : Integers(c), values(k.size(), rounded<bf16>(kNaN)) {
    for (int i = 0; i < c.keys() * c.columns(); ++i)
      values.host[i] = rounded<bf16>(normal()), v[i] = float(wide(values.host[i]));
    values.copy_in();
  }
  void set(Params& p) const { set_scales(p); }
  cudaError_t launch(const Params& p) const {
    const int64_t bytes = c.columns() * sizeof(bf16);
    const attention::Maps maps{query_map(attention::kRows), key_map(C::kTileKeys),
                               matrix_map(values.device, c.tokens, c.columns(), bytes, C::kTileKeys)};
    return attention::launch<C>(maps, p, nullptr);
  }
};

// Values in e4m3: codes of any size. There are places to spare.
struct Fp8 : Integers {
  using Params = fp8::Params;
  static constexpr const char* kName = "8 bits";
  static constexpr double kError = 2e-3, kOfSpread = 0.1;  // the second is p's own error, of few keys

  const int places;
  Array<uint8_t> values;
  Array<float> v_scale, v_offset;

  explicit Fp8(const Case& c)
      : Integers(c),
        places((ceil_div(c.tokens, kValueGroup) + 1) * kValueGroup),
        values(c.columns() * places, 0x7f),
        v_scale(c.columns()),
        v_offset(c.columns()) {
    v_scale.fill([] { return float(draw(1, 15)) / 10; });
    v_offset.fill([] { return normal(); });
    for (int channel = 0; channel < c.columns(); ++channel)
      for (int place = 0; place < places; ++place) {
        const int token = place / kValueGroup * kValueGroup + longlive::value_at(place % kValueGroup);
        if (token >= c.keys()) continue;
        const uint8_t code = uint8_t(draw(0x20, 0x40) | draw(0, 1) << 7);
        values.host[channel * places + place] = code;
        v[token * c.columns() + channel] = v_offset.host[channel] + v_scale.host[channel] * number(code);
      }
    values.copy_in();
  }
  void set(Params& p) const {
    set_scales(p);
    p.v_scale = v_scale.device, p.v_offset = v_offset.device;
  }
  cudaError_t launch(const Params& p) const {
    // As csrc/attention/ring_attention_fp8.cu has it.
    const fp8::Maps maps{query_map(fp8::kRows), key_map(fp8::kTileKeys),
                         matrix_map(values.device, c.columns(), places, places, kHeadDim)};
    return fp8::launch<fp8::Shared<4, 4>>(maps, p, nullptr);
  }
};

// softmax(q k^T / sqrt(128)) v of one row and head, zeros without keys; to `spread`, the sum over channels of
// sum(p^2 (v - result)^2), in which a random error of p counts.
std::vector<double> attention_of(const Case& c, const float* q, const float* k, const float* v, double& spread) {
  std::vector<double> scores(c.keys()), out(kHeadDim);
  double largest = -INFINITY, sum = 0;
  for (int t = 0; t < c.keys(); ++t) {
    for (int d = 0; d < kHeadDim; ++d) scores[t] += double(q[d]) * k[t * c.columns() + d];
    scores[t] /= std::sqrt(double(kHeadDim)), largest = std::max(largest, scores[t]);
  }
  for (double& score : scores) sum += score = std::exp(score - largest);
  for (int t = 0; t < c.keys(); ++t)
    for (int d = 0; d < kHeadDim; ++d) out[d] += scores[t] / sum * v[t * c.columns() + d];
  for (int t = 0; t < c.keys(); ++t)
    for (int d = 0; d < kHeadDim; ++d) spread += std::pow(scores[t] / sum * (v[t * c.columns() + d] - out[d]), 2);
  return out;
}

template <class Kind>
bool agrees(const Case& c) {
  using Params = typename Kind::Params;
  using Schedule = typename Params::Schedule;
  const Kind kind(c);
  Array<bf16> out(c.rows * c.columns(), rounded<bf16>(kNaN));
  const Array<int> valid(std::vector<int>{c.valid});
  const int partials = c.split_kv ? Schedule::partials(c.ctas) : 0;
  const Array<float> partial_out(size_t(partials) * Schedule::kRows * kHeadDim, kNaN);
  const Array<float2> partial_stats(size_t(partials) * Schedule::kRows, {kNaN, kNaN});
  Params p{out.device, {partial_out.device, partial_stats.device}, valid.device, c.rows, c.heads, c.tokens, c.ctas,
           c.split_kv};
  kind.set(p);
  check(kind.launch(p), "launch");
  check(cudaDeviceSynchronize(), "kernel");
  out.copy_out();

  double error = 0, norm = 0, spread = 0;
  for (int row = 0; row < c.rows; ++row)
    for (int head = 0; head < c.heads; ++head) {
      const int64_t at = row * c.columns() + head * kHeadDim;
      const auto want = attention_of(c, &kind.q[at], &kind.k[head * kHeadDim], &kind.v[head * kHeadDim], spread);
      for (int d = 0; d < kHeadDim; ++d) {
        const double off = wide(out.host[at + d]) - want[d];
        error += off * off, norm += want[d] * want[d];
      }
    }
  const double bound = Kind::kError * std::sqrt(norm) + Kind::kOfSpread * std::sqrt(spread);
  if (std::sqrt(error) <= bound) return true;  // NaN is not
  std::printf("off by %g: %s, %d heads, %d rows, %d of %d keys, %d CTAs, split-KV %d, queries of %g\n",
              std::sqrt(error / norm), Kind::kName, c.heads, c.rows, c.valid, c.tokens, c.ctas, c.split_kv, c.size);
  return false;
}

int main() {
  const Case cases[] = {
      {1, 1, 8, 1, 1},                       // one row, one key
      {2, 3, 16, 0, 2},                      // no key
      {1, 129, 192, 192, 1},                 // two tiles of queries, one of keys
      {2, 64, 200, 193, 3},                  // a key more than a tile, CTAs without work
      {1, 65, 392, 383, 1},                  // a key less
      {3, 200, 392, 1000, 2},                // all of them, three tiles a CTA
      {1, 193, 328, 321, 1},                 // half a tile of keys and one; a row more than 192
      {1, 1, 1728, 1720, 5, true},           // one row by several CTAs
      {2, 130, 1728, 1729, 7, true},         // tiles split at both ends
      {3, 130, 968, 577, 4, true},           // whole tiles first, then split ones
      {1, 70, 1728, 0, 3, true},             // nothing to split
      {2, 150, 1160, 1157, 1, false, 400},   // scores that leave the first tile's range
      {2, 150, 1160, 1157, 3, true, 400},    // in parts
      {1, 128, 392, 392, 1, false, 1e-12f},  // scores that are all alike
  };
  bool good = true;
  for (const Case& c : cases) good &= agrees<Bf16>(c) & agrees<Int8>(c) & agrees<Fp8>(c);
  std::printf(good ? "ring_attention agrees\n" : "ring_attention differs\n");
  return good ? 0 : 1;
}
