// csrc/attention/ring_attention.cuh without torch, bfloat16 and int8: one row, one key, no key, short last tiles,
// split-KV, several tiles a CTA, and scores for which int8's work is done again. What is not valid holds NaN. See
// sanitize.h.
//   nvcc -O2 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -lineinfo -Icsrc
//        tests/native/attention_sanitize.cu -o attention_sanitize
//   compute-sanitizer --tool racecheck ./attention_sanitize
#include "attention/ring_attention.cuh"
#include "sanitize.h"

using namespace longlive::attention;
using longlive::bf16;
using longlive::ceil_div;
using longlive::kHeadDim;
using longlive::kKeyRun;
using longlive::sm90::matrix_map;

// As csrc/attention/ring_attention.cu has them.
using Bf16 = Config<bf16, 192, 4>;
using Int8 = Config<int8_t, 192, 2, 3>;

struct Case {
  int heads, rows, tokens, valid, ctas;
  bool split_kv = false;
  float size = 2;  // of queries

  int keys() const { return std::clamp(valid, 0, tokens); }
  int64_t columns() const { return heads * kHeadDim; }
};

// What a kind reads, and the numbers `q` [rows, heads, 128] and `k` [tokens, heads, 128] that it stands for.
template <class C>
struct Operands;

// Queries lie beside keys and values, in rows three times as long.
template <>
struct Operands<Bf16> {
  std::vector<float> q, k;
  Array<bf16> fused, keys;
  const Case& c;

  explicit Operands(const Case& c)
      : q(c.rows * c.columns()),
        k(c.tokens * c.columns()),
        fused(3 * q.size() - 2 * c.columns(), rounded<bf16>(kNaN)),
        keys(k.size(), rounded<bf16>(kNaN)),
        c(c) {
    for (size_t i = 0; i < q.size(); ++i) {
      bf16& at = fused.host[i / c.columns() * 3 * c.columns() + i % c.columns()];
      at = rounded<bf16>(normal(c.size)), q[i] = float(wide(at));
    }
    for (int i = 0; i < c.keys() * c.columns(); ++i)
      keys.host[i] = rounded<bf16>(normal(2)), k[i] = float(wide(keys.host[i]));
    fused.copy_in(), keys.copy_in();
  }
  Maps maps(TensorMap v) const {
    const int64_t bytes = c.columns() * sizeof(bf16);
    return {matrix_map(fused.device, c.rows, c.columns(), 3 * bytes, kRows),
            matrix_map(keys.device, c.tokens, c.columns(), bytes, Bf16::kTileKeys), v};
  }
  void set(Params&) const {}
};

// Integers of any size, scales that make numbers of theirs as large as bfloat16's. There are scales to spare.
template <>
struct Operands<Int8> {
  std::vector<float> q, k;
  const int scales;
  Array<int8_t> queries, keys;
  Array<float> q_scale, k_scale;
  const Case& c;

  explicit Operands(const Case& c)
      : q(c.rows * c.columns()),
        k(c.tokens * c.columns()),
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
  Maps maps(TensorMap v) const {
    return {matrix_map(queries.device, c.rows, c.columns(), c.columns(), kRows),
            matrix_map(keys.device, c.tokens, c.columns(), c.columns(), Int8::kTileKeys), v};
  }
  void set(Params& p) const { p.q_scale = q_scale.device, p.k_scale = k_scale.device, p.k_scales = scales; }
};

// softmax(q k^T / sqrt(128)) v of one row and head; zeros without keys.
std::vector<double> attention(const Case& c, const float* q, const float* k, const bf16* v) {
  std::vector<double> scores(c.keys()), out(kHeadDim);
  double largest = -INFINITY, sum = 0;
  for (int t = 0; t < c.keys(); ++t) {
    for (int d = 0; d < kHeadDim; ++d) scores[t] += double(q[d]) * k[t * c.columns() + d];
    scores[t] /= std::sqrt(double(kHeadDim)), largest = std::max(largest, scores[t]);
  }
  for (double& score : scores) sum += score = std::exp(score - largest);
  for (int t = 0; t < c.keys(); ++t)
    for (int d = 0; d < kHeadDim; ++d) out[d] += scores[t] / sum * wide(v[t * c.columns() + d]);
  return out;
}

template <class C>
bool agrees(const Case& c) {
  const Operands<C> operands(c);
  Array<bf16> v(c.tokens * c.columns(), rounded<bf16>(kNaN)), out(c.rows * c.columns(), rounded<bf16>(kNaN));
  for (int i = 0; i < c.keys() * c.columns(); ++i) v.host[i] = rounded<bf16>(normal());
  v.copy_in();
  const Array<int> valid(std::vector<int>{c.valid});
  const int partials = c.split_kv ? Schedule::partials(c.ctas) : 0;
  const Array<float> partial_out(size_t(partials) * kTileRows * kHeadDim, kNaN);
  const Array<float2> partial_stats(size_t(partials) * kTileRows, {kNaN, kNaN});
  Params p{out.device, partial_out.device, partial_stats.device, valid.device, c.rows, c.heads, c.tokens,
           c.ctas,     c.split_kv};
  operands.set(p);
  const int64_t row_bytes = c.columns() * sizeof(bf16);
  const Maps maps = operands.maps(matrix_map(v.device, c.tokens, c.columns(), row_bytes, C::kTileKeys));
  check(launch<C>(maps, p, nullptr), "launch");
  check(cudaDeviceSynchronize(), "kernel");
  out.copy_out();

  double error = 0, norm = 0;
  for (int row = 0; row < c.rows; ++row)
    for (int head = 0; head < c.heads; ++head) {
      const int64_t at = row * c.columns() + head * kHeadDim;
      const auto want = attention(c, &operands.q[at], &operands.k[head * kHeadDim], &v.host[head * kHeadDim]);
      for (int d = 0; d < kHeadDim; ++d) {
        const double off = wide(out.host[at + d]) - want[d];
        error += off * off, norm += want[d] * want[d];
      }
    }
  if (std::sqrt(error) <= 5e-3 * std::sqrt(norm)) return true;  // NaN is not
  std::printf("off by %g: %s, %d heads, %d rows, %d of %d keys, %d CTAs, split-KV %d, queries of %g\n",
              std::sqrt(error / norm), C::kInt8 ? "int8" : "bfloat16", c.heads, c.rows, c.valid, c.tokens, c.ctas,
              c.split_kv, c.size);
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
      {1, 1, 1728, 1720, 5, true},           // one row by several CTAs
      {2, 130, 1728, 1729, 7, true},         // tiles split at both ends
      {3, 130, 968, 577, 4, true},           // whole tiles first, then split ones
      {1, 70, 1728, 0, 3, true},             // nothing to split
      {2, 150, 1160, 1157, 1, false, 400},   // scores that leave the first tile's range
      {2, 150, 1160, 1157, 3, true, 400},    // in parts
      {1, 128, 392, 392, 1, false, 1e-12f},  // scores that are all alike
  };
  bool good = true;
  for (const Case& c : cases) good &= agrees<Bf16>(c) & agrees<Int8>(c);
  std::printf(good ? "ring_attention agrees\n" : "ring_attention differs\n");
  return good ? 0 : 1;
}
