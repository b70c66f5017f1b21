#pragma once
// A cluster of CTAs on the CPU: every CUDA thread is a fibre, run in random order between the points where it may wait.
// Copies land, and products read their operands, at any time that the protocol allows: as late as possible, as soon as
// possible, or at random. Shared memory starts as NaN. A wait that nothing can end is reported.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

namespace emulated {
constexpr int kThreads = 384;
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
  void* stack_pointer = nullptr;
  std::vector<uint8_t> stack;
  int index = 0, cta = 0;
  bool done = false;
  const char* waits_for = "";
  std::vector<Product> issued;
  std::vector<std::vector<Product>> groups;
};
struct Meeting {  // of the threads that must all come
  int come = 0;
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
struct Machine {
  std::vector<Cta> ctas;
  Meeting cluster;
  int grid = 0;
  Thread* current = nullptr;
  void* scheduler = nullptr;
  std::mt19937 random;
  int lateness = 0;  // 0: copies and products at once, 1: at random, 2: as late as possible
  struct Copy {
    long due;
    std::function<void()> land;
  };
  std::vector<Copy> copies;
  long sweep = 0, progress = 0;
  std::function<void()> body;
};
inline Machine* machine = nullptr;

inline Thread& self() { return *machine->current; }
inline Cta& cta() { return machine->ctas[self().cta]; }

extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.globl emulated_switch
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

__attribute__((noinline)) inline void yield() { emulated_switch(&self().stack_pointer, machine->scheduler); }
template <class F>
void wait_until(const char* what, F ready) {
  self().waits_for = what;
  while (!ready()) yield();
  ++machine->progress;
  self().waits_for = "";
}
inline void meet(Meeting& m, int count, const char* what) {
  const unsigned generation = m.generation;
  if (++m.come == count) {
    m.come = 0, ++m.generation, ++machine->progress;
    return;
  }
  wait_until(what, [&] { return m.generation != generation; });
}
inline void thread_main() {
  machine->body();
  if (!self().issued.empty() || !self().groups.empty()) die("products under way at exit");
  self().done = true;
  ++machine->progress;
  yield();
  die("a finished thread runs");
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
  const uint32_t word = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &word, 4);
  return x;
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

// Runs `body` on a cluster; blocks are [first_block, first_block + ctas) of `grid`.
inline void launch(int ctas, int first_block, int grid, size_t shared_bytes, int lateness, int seed,
                   std::function<void()> body) {
  Machine m;
  machine = &m;
  m.grid = grid, m.lateness = lateness, m.random.seed(seed), m.body = std::move(body);
  m.ctas.resize(ctas);
  for (int c = 0; c < ctas; ++c) {
    Cta& cta = m.ctas[c];
    cta.storage.assign(shared_bytes + 128, 0xff);
    cta.memory = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(cta.storage.data()) + 127) & ~uintptr_t{127});
    cta.block = first_block + c;
    cta.threads.resize(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      Thread& thread = cta.threads[t];
      thread.index = t, thread.cta = c;
      thread.stack.resize(32 << 10);
      auto top = (reinterpret_cast<uintptr_t>(thread.stack.data()) + thread.stack.size()) & ~uintptr_t{15};
      auto* frame = reinterpret_cast<void**>(top) - 8;  // six registers, return address, and one for alignment
      for (int i = 0; i < 6; ++i) frame[i] = nullptr;
      frame[6] = reinterpret_cast<void*>(&thread_main);
      thread.stack_pointer = frame;
    }
  }
  std::vector<std::pair<int, int>> order;
  for (int c = 0; c < ctas; ++c)
    for (int w = 0; w < kThreads / 32; ++w) order.push_back({c, w});
  long seen = -1, idle = 0;
  for (size_t done = 0; done < size_t(ctas) * kThreads; ++m.sweep) {
    for (size_t i = 0; i < m.copies.size();)
      if (m.copies[i].due <= m.sweep) {
        const auto land = std::move(m.copies[i].land);
        m.copies.erase(m.copies.begin() + i);
        land();
        ++m.progress;
      } else {
        ++i;
      }
    std::shuffle(order.begin(), order.end(), m.random);
    done = 0;
    for (const auto& [c, w] : order)
      for (int lane = 0; lane < 32; ++lane) {
        Thread& t = m.ctas[c].threads[w * 32 + lane];
        if (!t.done) {
          m.current = &t;
          emulated_switch(&m.scheduler, t.stack_pointer);
        }
        done += t.done;
      }
    idle = m.progress == seen && m.copies.empty() ? idle + 1 : 0;
    seen = m.progress;
    if (idle > 1000) {
      for (const Cta& cta : m.ctas)
        for (const Thread& t : cta.threads)
          if (!t.done && t.index % 32 == 0) fprintf(stderr, "cta %d warp %d waits for %s\n", t.cta, t.index / 32, t.waits_for);
      die("nothing can go on");
    }
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
#define LL_BITS(T, x) ([](auto v) { T r; static_assert(sizeof r == sizeof v); memcpy(&r, &v, sizeof r); return r; }(x))

inline float __uint_as_float(uint32_t x) { return LL_BITS(float, x); }
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return LL_BITS(T, emulated::exchange(LL_BITS(uint32_t, x), emulated::self().index % 32 ^ mask));
}
template <class T>
T __shfl_down_sync(unsigned, T x, int by) {
  const int from = emulated::self().index % 32 + by;
  return LL_BITS(T, emulated::exchange(LL_BITS(uint32_t, x), from < 32 ? from : from - by));
}
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return LL_BITS(T, emulated::exchange(LL_BITS(uint32_t, x), from));
}
inline void __syncwarp() { emulated::exchange(0, 0); }
inline void __syncthreads() { emulated::meet(emulated::cta().all, emulated::kThreads, "__syncthreads"); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return y > 8.5e37f ? 0.f * x : x / y; }
inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
