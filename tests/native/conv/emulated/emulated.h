#pragma once
// A cluster of CTAs on the CPU: each CUDA thread is a fibre, run in random order between the points where it may wait.
// Copies land, and products read their operands, at any time that the protocol allows: as late as possible, as soon as
// possible, or at random. Shared memory starts as NaN. A wait that nothing can end is reported.
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

namespace emulated {
constexpr int kThreads = 384;     // of a CTA
constexpr uint32_t kBase = 1024;  // where shared memory starts

[[noreturn]] inline void die(const char* what) {
  fprintf(stderr, "emulation: %s\n", what);
  abort();
}

struct Product {
  float* d;
  uint64_t a, b;
  int n;
};
struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  int index = 0, cta = 0;
  bool done = false;
  std::function<bool()> ready;  // none: it can go on
  const char* waits_for = "";
  std::vector<Product> issued;
  std::vector<std::vector<Product>> groups;
};
struct Meeting {  // of the threads that must all come
  int came = 0;
  unsigned generation = 0;
};
struct Warp {
  Meeting meeting;
  uint32_t slot[2][32];
};
struct Cta {
  std::vector<uint8_t> storage;
  uint8_t* memory = nullptr;
  int block = 0;
  std::vector<Thread> threads;
  Warp warps[kThreads / 32];
  Meeting all;
};
struct Copy {
  long due;
  std::function<void()> land;
};
struct Machine {
  std::vector<Cta> ctas;
  Meeting cluster;
  int grid = 0;
  Thread* current = nullptr;
  ucontext_t scheduler;
  std::mt19937 random;
  int lateness = 0;  // 0: copies and products at once, 1: at random, 2: as late as possible
  std::vector<Copy> copies;
  long sweep = 0;
  int running = 0;
  std::function<void()> body;
};
inline Machine* machine = nullptr;

inline Thread& self() { return *machine->current; }
inline Cta& cta() { return machine->ctas[self().cta]; }

inline void yield() { swapcontext(&self().context, &machine->scheduler); }
template <class F>
void wait_until(const char* what, F ready) {
  if (ready()) return;
  self().ready = std::ref(ready), self().waits_for = what;
  yield();
}
inline void meet(Meeting& m, int count, const char* what) {
  const unsigned generation = m.generation;
  if (++m.came == count) {
    m.came = 0, ++m.generation;
  } else {
    wait_until(what, [&] { return m.generation != generation; });
  }
}
inline void thread_main() {
  machine->body();
  if (!self().issued.empty() || !self().groups.empty()) die("products under way at exit");
  self().done = true, --machine->running;
  yield();
}

inline uint32_t exchange(uint32_t mine, int from) {
  Warp& w = cta().warps[self().index / 32];
  const int turn = w.meeting.generation & 1;
  w.slot[turn][self().index % 32] = mine;
  meet(w.meeting, 32, "warp");
  return w.slot[turn][from];
}

inline float bf16_at(uint32_t address) {
  uint16_t bits;
  if (address < kBase || address - kBase + 2 > cta().storage.size()) die("product reads outside of shared memory");
  memcpy(&bits, cta().memory + (address - kBase), 2);
  return std::bit_cast<float>(uint32_t(bits) << 16);
}
// This thread's part: rows 16 warp + lane / 4 (+ 8), columns 8 i + 2 (lane % 4) (+ 1).
inline void run(const Product& p) {
  const auto operand = [](uint64_t d, int row, int k) {
    const uint32_t start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
    return bf16_at(start + row % 8 * 16 + row / 8 * stride + k / 8 * leading + k % 8 * 2);
  };
  if (p.a >> 62 || p.b >> 62) die("swizzled operand");
  const int lane = self().index % 32, warp = self().index / 32 % 4;
  float a[2][16];
  for (int r = 0; r < 2; ++r)
    for (int k = 0; k < 16; ++k) a[r][k] = operand(p.a, 16 * warp + lane / 4 + 8 * r, k);
  for (int i = 0; i < p.n / 8; ++i)
    for (int j = 0; j < 2; ++j) {
      float sum[2] = {};
      for (int k = 0; k < 16; ++k) {
        const float b = operand(p.b, 8 * i + 2 * (lane % 4) + j, k);
        for (int r = 0; r < 2; ++r) sum[r] += a[r][k] * b;
      }
      for (int r = 0; r < 2; ++r) p.d[4 * i + 2 * r + j] += sum[r];
    }
}
inline void finish_groups(size_t pending) {
  auto& groups = self().groups;
  while (groups.size() > pending) {
    for (const Product& p : groups.front()) run(p);
    groups.erase(groups.begin());
  }
}

inline void copy(std::function<void()> land) {
  const long delay = machine->lateness == 0 ? 0 : machine->lateness == 1 ? machine->random() % 40 : 40;
  machine->copies.push_back({machine->sweep + delay, std::move(land)});
}
inline void land_copies() {
  auto& copies = machine->copies;
  const auto later = std::stable_partition(copies.begin(), copies.end(),
                                           [](const Copy& c) { return c.due <= machine->sweep; });
  for (auto c = copies.begin(); c != later; ++c) c->land();
  copies.erase(copies.begin(), later);
}

inline void set_up(Cta& cta, int index, int block, size_t shared_bytes) {
  cta.storage.assign(shared_bytes + 128, 0xff);
  cta.memory = cta.storage.data() + -reinterpret_cast<uintptr_t>(cta.storage.data()) % 128;
  cta.block = block;
  cta.threads.resize(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    Thread& t = cta.threads[i];
    t.index = i, t.cta = index;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.data(), t.context.uc_stack.ss_size = t.stack.size();
    makecontext(&t.context, thread_main, 0);
  }
}

[[noreturn]] inline void report_deadlock() {
  for (const Cta& cta : machine->ctas)
    for (const Thread& t : cta.threads)
      if (!t.done && t.index % 32 == 0)
        fprintf(stderr, "cta %d warp %d waits for %s\n", t.cta, t.index / 32, t.waits_for);
  die("nothing can go on");
}

// Lets each thread of a warp go on, if it can; false if none can.
inline bool step(Cta& cta, int warp) {
  bool moved = false;
  for (int i = warp * 32; i < (warp + 1) * 32; ++i) {
    Thread& t = cta.threads[i];
    if (t.done || (t.ready && !t.ready())) continue;
    t.ready = nullptr, t.waits_for = "";
    machine->current = &t;
    swapcontext(&machine->scheduler, &t.context);
    moved = true;
  }
  return moved;
}

// Runs `body` on a cluster; blocks are [first_block, first_block + ctas) of `grid`.
inline void launch(int ctas, int first_block, int grid, size_t shared_bytes, int lateness, int seed,
                   std::function<void()> body) {
  Machine m;
  machine = &m;
  m.grid = grid, m.lateness = lateness, m.random.seed(seed), m.body = std::move(body);
  m.ctas.resize(ctas), m.running = ctas * kThreads;
  std::vector<std::pair<int, int>> order;
  for (int c = 0; c < ctas; ++c) {
    set_up(m.ctas[c], c, first_block + c, shared_bytes);
    for (int w = 0; w < kThreads / 32; ++w) order.push_back({c, w});
  }
  for (; m.running > 0; ++m.sweep) {
    land_copies();
    std::shuffle(order.begin(), order.end(), m.random);
    bool moved = false;
    for (const auto& [c, w] : order) moved |= step(m.ctas[c], w);
    if (!moved && m.copies.empty()) report_deadlock();
  }
  if (!m.copies.empty()) die("copies under way at exit");
  machine = nullptr;
}

struct Index {
  int x;
};
}  // namespace emulated

#define threadIdx (emulated::Index{emulated::self().index})
#define blockIdx (emulated::Index{emulated::cta().block})
#define gridDim (emulated::Index{emulated::machine->grid})

inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return std::bit_cast<T>(emulated::exchange(std::bit_cast<uint32_t>(x), from));
}
template <class T>
T __shfl_xor_sync(unsigned all, T x, int mask) {
  return __shfl_sync(all, x, emulated::self().index % 32 ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned all, T x, int by) {
  const int from = emulated::self().index % 32 + by;
  return __shfl_sync(all, x, from < 32 ? from : from - by);
}
inline void __syncwarp() { emulated::exchange(0, 0); }
inline void __syncthreads() { emulated::meet(emulated::cta().all, emulated::kThreads, "__syncthreads"); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
