#pragma once
// One multiprocessor, slowly: the threads of a block take turns in random order, and the copy engine and the tensor
// cores act beside them, each of their actions at a random later moment. So a missing wait shows: what is read too
// early has not landed, what is written too early is still in use. What cannot go on is a deadlock, and said to be one.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace emulator {
constexpr int kSharedBytes = 232448;
inline uint8_t* shared;  // kSharedBytes of it

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::printf("emulator: %s\n", what);
  std::exit(3);
}

struct Index {
  unsigned x = 0;
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  std::function<bool()> blocked;  // until it is true
  bool over = false;
  int issued = 0;               // products
  std::vector<int> group_ends;  // products issued when each group of them was committed
};

// Where a number of threads meet: each waits until all have come.
struct Meeting {
  int came = 0, turn = 0;
};

struct Product {
  int threads = 0;               // that have issued it
  float* sums[128];              // registers, of each thread
  const uint32_t* operand[128];
  std::function<void(Product&)> run;
};

struct Tensor {  // the tensor cores, for one warpgroup: in order
  std::deque<Product> queue;
  int done = 0;
};

struct Block {
  int threads;
  std::function<void()> body;
  std::vector<Meeting> warps;
  std::vector<float> lanes;  // what the threads of a warp show each other
  Meeting all;
  std::vector<std::function<void()>> copies;
  std::vector<Tensor> tensor;
};

inline Block* block;
inline Thread* self;
inline Index thread_index, block_index;
inline ucontext_t scheduler;
inline std::mt19937 random_source{1};

inline unsigned below(unsigned n) { return unsigned(random_source()) % n; }

inline void wait_until(std::function<bool()> condition) {
  if (condition()) return;
  self->blocked = std::move(condition);
  swapcontext(&self->context, &scheduler);
}

inline void meet(Meeting& m, int count) {
  const int turn = m.turn;
  if (++m.came == count) {
    m.came = 0, ++m.turn;
  } else {
    wait_until([&m, turn] { return m.turn != turn; });
  }
}

inline void enter() {
  block->body();
  self->over = true;
  swapcontext(&self->context, &scheduler);
}

inline void run_block(unsigned index, int threads, std::function<void()> body) {
  std::memset(shared, 0xff, kSharedBytes);
  Block here;
  block = &here;
  here.threads = threads;
  here.body = std::move(body);
  here.warps.resize(threads / 32), here.lanes.resize(threads), here.tensor.resize((threads + 127) / 128);
  static std::vector<std::unique_ptr<Thread>> pool;  // stacks are kept
  while (int(pool.size()) < threads) pool.push_back(std::make_unique<Thread>());
  for (int i = 0; i < threads; ++i) {
    Thread& t = *pool[i];
    t.blocked = nullptr, t.over = false, t.issued = 0, t.group_ends.clear();
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.data(), t.context.uc_stack.ss_size = t.stack.size();
    makecontext(&t.context, enter, 0);
  }
  int left = threads, idle = 0;
  // Some threads, and the engines, are slow in some blocks.
  std::vector<unsigned> slow(threads / 32);
  for (unsigned& s : slow) s = 1 + below(4) * below(8);
  constexpr unsigned kSlow[] = {1, 200, 100000};  // the last: when all others wait
  const unsigned slow_copies = kSlow[below(3)], slow_tensor = kSlow[below(3)];
  while (left > 0) {
    bool moved = false;
    if (!here.copies.empty() && (idle > 1 || below(slow_copies) == 0)) {
      std::swap(here.copies[below(here.copies.size())], here.copies.back());
      here.copies.back()();
      here.copies.pop_back(), moved = true;
    }
    for (Tensor& t : here.tensor)
      if (!t.queue.empty() && t.queue.front().threads == 128 && (idle > 1 || below(slow_tensor) == 0)) {
        t.queue.front().run(t.queue.front());
        t.queue.pop_front(), ++t.done, moved = true;
      }
    const int start = below(threads), count = idle ? threads : 1 + below(64);
    for (int n = 0; n < count; ++n) {
      const int i = (start + n) % threads;
      Thread& t = *pool[i];
      if (t.over || (!idle && below(slow[i / 32]) != 0)) continue;
      if (t.blocked && !t.blocked()) continue;
      t.blocked = nullptr;
      self = &t, thread_index.x = i, block_index.x = index;
      swapcontext(&scheduler, &t.context);
      left -= t.over, moved = true;
    }
    if (moved) {
      idle = 0;
    } else if (++idle > 8) {
      std::printf("emulator: deadlock in block %u: threads", index);
      for (int i = 0; i < threads; ++i)
        if (!pool[i]->over) std::printf(" %d", i);
      std::puts("");
      std::exit(4);
    }
  }
  require(here.copies.empty(), "a copy was not waited for");
  for (const Tensor& t : here.tensor) require(t.queue.empty(), "a product was not waited for");
}
}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index

inline float __shfl_xor_sync(unsigned, float x, int lane) {
  using namespace emulator;
  const int i = thread_index.x, warp = i / 32;
  block->lanes[i] = x;
  meet(block->warps[warp], 32);
  const float y = block->lanes[i ^ lane];
  meet(block->warps[warp], 32);
  return y;
}
inline bool __any_sync(unsigned, bool x) {
  float sum = x;
  for (int lane = 1; lane < 32; lane *= 2) sum += __shfl_xor_sync(~0u, sum, lane);
  return sum > 0;
}
inline int __shfl_sync(unsigned, int x, int) { return x; }  // used for what is the same in all lanes
inline void __syncwarp() { emulator::meet(emulator::block->warps[emulator::thread_index.x / 32], 32); }
inline void __syncthreads() { emulator::meet(emulator::block->all, emulator::block->threads); }
[[noreturn]] inline void __trap() {
  emulator::require(false, "trap");
  std::abort();
}
