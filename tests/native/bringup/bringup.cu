// Bring-up of ring_attention without torch: one configuration (TK, ST, OV, TU), every way of scheduling it.
// nvcc -DTK=176 -DST=4 -DOV=true -DTU=true ...; ./a.out [cases] [check|time|all]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/ring_attention.cuh"

using namespace longlive::attention;
using C = Config<TK, ST, OV, TU>;

#define OK(expr)                                                                                     \
  do {                                                                                               \
    const cudaError_t e_ = (expr);                                                                   \
    if (e_ != cudaSuccess) printf("%s: %s\n", #expr, cudaGetErrorString(e_)), fflush(stdout), _Exit(2); \
  } while (0)

__host__ __device__ inline uint32_t hash(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdull, x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
  return uint32_t(x >> 32);
}
__global__ void fill(bf16* x, int64_t n, uint64_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    const float u = (hash(2 * i + seed * 0x9e3779b97f4a7c15ull) + 1.f) / 4294967808.f;
    const float v = hash(2 * i + 1 + seed * 0x9e3779b97f4a7c15ull) / 4294967296.f;
    x[i] = __float2bfloat16(scale * sqrtf(-2 * logf(u)) * cospif(2 * v));
  }
}
// NaN in all rows of no group's ranges.
__global__ void poison(bf16* x, int row_size, const int* ranges, int n) {
  for (int i = 0; i < n; ++i)
    if (int(blockIdx.x) >= ranges[2 * i] && int(blockIdx.x) < ranges[2 * i + 1]) return;
  for (int i = threadIdx.x; i < row_size; i += blockDim.x)
    reinterpret_cast<uint16_t*>(x)[int64_t(blockIdx.x) * row_size + i] = 0x7fff;
}
// One block: one (row, head), in float64. scratch: [blocks, tokens]
__global__ void truth(const bf16* q, const bf16* k, const bf16* v, const int* ranges, const int* rows, int heads, int split,
                      int tokens, double* scratch, double* out) {
  const int row = rows[blockIdx.x], head = blockIdx.y;
  const int64_t at = int64_t(blockIdx.x) * heads + head;
  double* s = scratch + at * tokens;
  const int* r = ranges + (row >= split) * 4;
  __shared__ double red[256];
  double m = -INFINITY, sum = 0;
  for (int i = 0; i < 2; ++i)
    for (int t = max(0, r[2 * i]) + threadIdx.x; t < min(tokens, r[2 * i + 1]); t += blockDim.x) {
      double x = 0;
      for (int d = 0; d < 128; ++d)
        x += double(__bfloat162float(q[(int64_t(row) * heads + head) * 128 + d])) *
             double(__bfloat162float(k[(int64_t(t) * heads + head) * 128 + d]));
      s[t] = x / sqrt(128.), m = fmax(m, s[t]);
    }
  red[threadIdx.x] = m;
  __syncthreads();
  for (int i = 0; i < blockDim.x; ++i) m = fmax(m, red[i]);
  double o = 0;
  for (int i = 0; i < 2; ++i)
    for (int t = max(0, r[2 * i]); t < min(tokens, r[2 * i + 1]); ++t) {
      const double p = exp(s[t] - m);
      sum += p;
      if (threadIdx.x < 128) o += p * double(__bfloat162float(v[(int64_t(t) * heads + head) * 128 + threadIdx.x]));
    }
  if (threadIdx.x < 128) out[at * 128 + threadIdx.x] = sum > 0 ? o / sum : 0;
}

struct Case {
  int heads, rows, split, tokens;
  std::vector<int> ranges;  // 4 or 8
  float spread = 1;
};
struct Way {
  const char* name;
  bool per_item, cut, early;
};
constexpr Way kWays[] = {{"one item a CTA", true, false, false},
                         {"persistent", false, false, false},
                         {"cut", false, true, false},
                         {"cut, early merge", false, true, true}};

template <class T>
T* device(size_t n) {
  void* p;
  OK(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T)));
  return static_cast<T*>(p);
}

struct Setup {
  Case c;
  bf16 *q, *k, *v, *out;
  float* part_out;
  float2* part_stats;
  int* ranges;
  int sms;
  size_t out_size;
  Setup(const Case& c, int sms, uint64_t seed) : c(c), sms(sms) {
    const size_t row = size_t(c.heads) * 128;
    out_size = c.rows * row;
    q = device<bf16>(out_size), out = device<bf16>(out_size);
    k = device<bf16>(c.tokens * row), v = device<bf16>(c.tokens * row);
    part_out = device<float>(size_t(Schedule::parts(sms)) * kTileRows * 128);
    part_stats = device<float2>(size_t(Schedule::parts(sms)) * kTileRows);
    ranges = device<int>(8);
    OK(cudaMemcpy(ranges, c.ranges.data(), c.ranges.size() * 4, cudaMemcpyHostToDevice));
    fill<<<1024, 256>>>(q, out_size, 3 * seed, c.spread), fill<<<1024, 256>>>(k, c.tokens * row, 3 * seed + 1, c.spread);
    fill<<<1024, 256>>>(v, c.tokens * row, 3 * seed + 2, 1);
    poison<<<c.tokens, 128>>>(k, int(row), ranges, int(c.ranges.size()) / 2);
    poison<<<c.tokens, 128>>>(v, int(row), ranges, int(c.ranges.size()) / 2);
    OK(cudaDeviceSynchronize());
  }
  ~Setup() {
    for (void* p : {(void*)q, (void*)k, (void*)v, (void*)out, (void*)part_out, (void*)part_stats, (void*)ranges}) cudaFree(p);
  }
  void run(const Way& w) {
    const int items = c.heads * (ceil_div(c.split, kTileRows) + ceil_div(c.rows - c.split, kTileRows));
    const Params p{out, part_out, part_stats, ranges, c.rows, c.split, c.heads, c.tokens, w.per_item ? items : sms, w.cut};
    const int64_t columns = c.heads * 128;
    OK(launch<C>(longlive::sm90::matrix_map(q, c.rows, columns, columns * 2, kRows),
                 longlive::sm90::matrix_map(k, c.tokens, columns, columns * 2, C::kTileKeys),
                 longlive::sm90::matrix_map(v, c.tokens, columns, columns * 2, C::kTileKeys), p, w.early, 0));
  }
};

bool check(const Case& c, const Way& w, int sms, uint64_t seed, int samples) {
  Setup s(c, sms, seed);
  std::vector<uint16_t> got[2];
  for (auto& g : got) {
    OK(cudaMemset(s.out, 0xff, s.out_size * 2));
    OK(cudaMemset(s.part_out, 0xff, size_t(Schedule::parts(sms)) * kTileRows * 128 * 4));
    OK(cudaMemset(s.part_stats, 0xff, size_t(Schedule::parts(sms)) * kTileRows * 8));
    s.run(w);
    OK(cudaDeviceSynchronize());
    g.resize(s.out_size);
    OK(cudaMemcpy(g.data(), s.out, s.out_size * 2, cudaMemcpyDeviceToHost));
  }
  const bool same = got[0] == got[1];
  std::vector<int> rows;
  if (samples >= c.rows) {
    for (int i = 0; i < c.rows; ++i) rows.push_back(i);
  } else {
    for (int i = 0; i < samples; ++i) rows.push_back(hash(seed * 977 + i) % c.rows);
    rows[0] = 0, rows[1] = c.rows - 1, rows[2] = std::max(0, c.split - 1), rows[3] = std::min(c.split, c.rows - 1);
  }
  const int n = int(rows.size());
  int* d_rows = device<int>(n);
  double *scratch = device<double>(size_t(n) * c.heads * c.tokens), *want = device<double>(size_t(n) * c.heads * 128);
  OK(cudaMemcpy(d_rows, rows.data(), n * 4, cudaMemcpyHostToDevice));
  truth<<<dim3(n, c.heads), 256>>>(s.q, s.k, s.v, s.ranges, d_rows, c.heads, c.split, c.tokens, scratch, want);
  OK(cudaDeviceSynchronize());
  std::vector<double> h(size_t(n) * c.heads * 128);
  OK(cudaMemcpy(h.data(), want, h.size() * 8, cudaMemcpyDeviceToHost));
  cudaFree(d_rows), cudaFree(scratch), cudaFree(want);
  double err = 0, norm = 0, worst = 0;
  size_t worst_at = 0, nans = 0;
  for (size_t i = 0; i < h.size(); ++i) {
    const size_t at = size_t(rows[i / (c.heads * 128)]) * c.heads * 128 + i % (c.heads * 128);
    const uint32_t bits = uint32_t(got[0][at]) << 16;
    float x;
    memcpy(&x, &bits, 4);
    const double e = x - h[i];
    if (!(std::abs(e) < 1e30)) ++nans, worst_at = worst_at ? worst_at : at;
    err += e * e, norm += h[i] * h[i];
    if (std::abs(e) > worst) worst = std::abs(e), worst_at = at;
  }
  const double rel = norm > 0 ? std::sqrt(err / norm) : std::sqrt(err);
  const bool ok = same && !nans && rel < 8e-3;
  if (!ok) {
    printf("  FAILED %-18s heads %d rows %d split %d tokens %d spread %g ranges", w.name, c.heads, c.rows, c.split, c.tokens,
           c.spread);
    for (int x : c.ranges) printf(" %d", x);
    printf(": relative error %.3g, not finite %zu, repeatable %d, worst at row %zu head %zu column %zu\n", rel, nans, same,
           worst_at / 128 / c.heads, worst_at / 128 % c.heads, worst_at % 128);
  } else if (samples < c.rows) {
    printf("  ok %-18s %d x %d, %d heads: relative error %.4g\n", w.name, c.rows, c.tokens, c.heads, rel);
  }
  fflush(stdout);
  return ok;
}

Case random_case(std::mt19937& g) {
  const auto u = [&](int a, int b) { return std::uniform_int_distribution<int>(a, b)(g); };
  Case c{u(1, 4), u(0, 2) ? u(1, 700) : u(1, 3000), 0, u(0, 2) ? u(1, 1500) : u(1, 6000), {}, u(0, 4) ? 1.f : 3.f};
  const bool two = u(0, 1);
  c.split = two ? u(0, c.rows) : c.rows;
  for (int i = 0; i <= two; ++i) {
    int a[4];
    for (int& x : a) x = u(0, c.tokens);
    std::sort(a, a + 4);
    if (!u(0, 3)) a[1] = a[0];  // an empty range
    if (!u(0, 3)) a[3] = a[2];
    if (!u(0, 5)) a[0] = 0, a[1] = c.tokens, a[2] = a[3] = 0;
    if (!u(0, 9)) a[1] = std::min(a[0] + 1, c.tokens), a[2] = a[3] = c.tokens;  // one key
    c.ranges.insert(c.ranges.end(), a, a + 4);
  }
  return c;
}

int main(int argc, char** argv) {
  const int cases = argc > 1 ? atoi(argv[1]) : 60;
  const std::string what = argc > 2 ? argv[2] : "all";
  int sms;
  OK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  printf("== tile of %d keys, %d stages, overlap %d, turns %d; %zu bytes of shared memory, %d SMs\n", TK, ST, OV, TU,
         sizeof(Shared<C>), sms);
  bool good = true;
  if (what != "time") {
    // From the simplest on, so that the first failure says most.
    const Case ladder[] = {{1, 64, 64, TK, {0, TK, 0, 0}},          // one tile of keys, one warpgroup's queries
                           {1, 128, 128, TK, {0, TK, 0, 0}},        // both warpgroups
                           {1, 128, 128, 2 * TK, {0, 2 * TK, 0, 0}},  // two tiles: the loop, once
                           {1, 128, 128, 8 * TK, {0, 8 * TK, 0, 0}},  // the ring of buffers wraps
                           {1, 100, 100, 8 * TK, {0, 8 * TK, 0, 0}},  // rows that are not there
                           {1, 128, 128, 3 * TK, {0, 2 * TK + 5, 0, 0}},  // a short tile before NaN
                           {1, 128, 128, 3 * TK, {0, 3 * TK - 7, 0, 0}},
                           {1, 128, 128, 100, {0, 100, 0, 0}},            // a short tile at the end of memory
                           {1, 128, 128, 600, {10, 11, 0, 0}},            // one key
                           {1, 128, 128, 600, {0, 0, 0, 0}},              // no key
                           {2, 256, 256, 1000, {3, 401, 500, 977}},       // two ranges
                           {2, 500, 200, 1000, {3, 401, 500, 977, 100, 900, 0, 0}},
                           {12, 2000, 2000, 3000, {0, 3000, 0, 0}}};      // several items a CTA
    for (const Way& w : kWays) {
      bool all = true;
      for (const Case& c : ladder) all &= check(c, w, sms, 7, 1 << 30);
      printf("%s %s: the ladder\n", all ? "ok" : "FAILED", w.name), fflush(stdout);
      good &= all;
      if (!all) break;
      std::mt19937 g(TK);
      int failed = 0;
      for (int i = 0; i < cases && failed < 4; ++i) failed += !check(random_case(g), w, sms, 100 + i, 1 << 30);
      printf("%s %s: %d random cases\n", failed ? "FAILED" : "ok", w.name, cases), fflush(stdout);
      good &= !failed;
    }
    const Case real[] = {{12, 4680, 4680, 18720, {0, 18720, 0, 0}},
                         {12, 9360, 4680, 23400, {0, 4680, 9360, 23400, 0, 4680, 4680, 18720}},
                         {12, 4680, 4680, 512, {0, 512, 0, 0}}};
    for (const Case& c : real)
      for (const Way& w : kWays)
        if (good) good &= check(c, w, sms, 1, 40);
  }
  if (what == "check" || !good) return good ? 0 : 1;

  const struct {
    Case c;
    const char* name;
  } timed[] = {{{12, 4680, 4680, 18720, {0, 18720, 0, 0}}, "4680 x 18720"},
               {{12, 9360, 4680, 23400, {0, 4680, 9360, 23400, 0, 4680, 4680, 18720}}, "2 x 4680 x 18720"},
               {{12, 14040, 14040, 14040, {0, 14040, 0, 0}}, "14040 x 14040"},
               {{12, 2160, 2160, 8640, {0, 8640, 0, 0}}, "2160 x 8640"},
               {{12, 4680, 4680, 512, {0, 512, 0, 0}}, "4680 x 512"},
               {{12, 5632, 5632, 18720, {0, 18720, 0, 0}}, "5632 x 18720, whole waves"}};
  for (const auto& t : timed) {
    Setup s(t.c, sms, 5);
    double flops = 0;
    for (int g = 0; g < int(t.c.ranges.size()) / 4; ++g) {
      const int* r = &t.c.ranges[4 * g];
      flops += 4. * 128 * t.c.heads * (g ? t.c.rows - t.c.split : t.c.split) * (r[1] - r[0] + r[3] - r[2]);
    }
    for (const Way& w : kWays) {
      cudaEvent_t a, b;
      OK(cudaEventCreate(&a));
      OK(cudaEventCreate(&b));
      std::vector<float> ms;
      const int each = flops > 1e11 ? 4 : 40;
      for (int i = 0; i < 24; ++i) {
        OK(cudaEventRecord(a));
        for (int j = 0; j < each; ++j) s.run(w);
        OK(cudaEventRecord(b));
        OK(cudaEventSynchronize(b));
        float x;
        OK(cudaEventElapsedTime(&x, a, b));
        if (i >= 4) ms.push_back(x / each);
      }
      std::sort(ms.begin(), ms.end());
      printf("TIME %3d keys %d stages overlap %d turns %d | %-26s | %-18s | %8.1f us (%.1f..%.1f) %6.1f TFLOP/s\n", TK, ST, OV,
             TU, t.name, w.name, ms[10] * 1e3, ms[0] * 1e3, ms[19] * 1e3, flops / ms[10] / 1e9);
      fflush(stdout);
    }
  }
  return 0;
}
