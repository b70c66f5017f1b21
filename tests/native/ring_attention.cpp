// csrc/attention/ring_attention.cuh itself, on the emulator, against float64. Run by
// tests/kernels/test_ring_attention.py.
#include "attention/ring_attention.cuh"

#include "attention_case.h"

using namespace longlive::attention;
using longlive::bf16;

std::vector<uint16_t> rounded(std::vector<float>& x) {
  std::vector<uint16_t> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = narrow(x[i]), x[i] = widen(y[i]);
  return y;
}

// Queries and keys of a kind: x becomes what they stand for.
template <class T>
struct Rows {
  std::vector<uint16_t> of;
  std::vector<float> scale;
  int scales = 0;
  Rows(std::vector<float>& x, int, int, int) : of(rounded(x)) {}
  void spoil_from(int count, int heads) { std::fill(of.begin() + int64_t(count) * heads * kHeadDim, of.end(), 0x7fff); }
};
template <>
struct Rows<int8_t> : Integers {
  Rows(std::vector<float>& x, int tokens, int heads, int run)
      : Integers(x, tokens, heads, run, run == 1 ? tokens : longlive::ceil_div(tokens, 4 * run) * 4) {}
};

template <class C>
bool check(Case c) {
  using T = typename C::Key;
  if (C::kInt8) c.tokens = longlive::ceil_div(c.tokens, longlive::kKeyRun) * longlive::kKeyRun;
  const int64_t columns = c.heads * kHeadDim;
  const int keys = std::clamp(c.valid, 0, c.tokens);
  auto q = noise(c.rows * columns, c.size), k = noise(c.tokens * columns, 2), v = noise(c.tokens * columns, 1);
  const Rows<T> queries(q, c.rows, c.heads, 1);
  Rows<T> ring(k, c.tokens, c.heads, longlive::kKeyRun);
  auto narrow_v = rounded(v);
  ring.spoil_from(keys, c.heads);
  std::fill(narrow_v.begin() + keys * columns, narrow_v.end(), 0x7fff);

  Results<Params<C>> results(c);
  Params<C> p = results.params();
  p.q_scale = queries.scale.data(), p.k_scale = ring.scale.data(), p.k_scales = ring.scales;
  const auto map = [columns]<class E>(const E* x, int rows, int box_rows) {
    return longlive::sm90::matrix_map(x, rows, columns, columns * sizeof(E), box_rows);
  };
  const Maps maps{map(reinterpret_cast<const T*>(queries.of.data()), c.rows, kRows),
                  map(reinterpret_cast<const T*>(ring.of.data()), c.tokens, C::kTileKeys),
                  map(reinterpret_cast<const bf16*>(narrow_v.data()), c.tokens, C::kTileKeys)};
  emulator::require(launch<C>(maps, p, nullptr) == cudaSuccess, "no launch");

  results.require_no_more();
  const double error = error_of(c, keys, q, k, v, [&](int64_t i) { return widen(results.out[i]); });
  return passes(c, error, 5e-3, C::kInt8 ? "int8" : "bfloat16");
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
