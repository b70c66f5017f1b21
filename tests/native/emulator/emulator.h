#pragma once
// A cluster of CTAs on a CPU, slowly: each CUDA thread is a fibre, and warps are stepped in random order between the
// points where they may wait; some warps and lanes move only when nothing else can. Copies and tensor cores act beside
// them: as soon as they can, at random moments, or when no thread can go on. So a missing wait shows: what is read too
// early has not landed, what is written too early is still in use. Shared memory starts as NaN,
// or as negative numbers. A wait that nothing can
// end is reported.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;  // of the thread that runs

namespace emulator {
constexpr int kSharedBytes = 232448;  // of a CTA, at most
constexpr uint32_t kBase = 1024;      // where its addresses start
constexpr int kWarp = 32, kWarpgroup = 128;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::_Exit(3);
}
inline void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

// The threads of a warp, a CTA or a cluster that must all come.
struct Meeting {
  int came = 0;
  unsigned generation = 0;
};

struct Warp {
  Meeting meeting;
  uint32_t lanes[2][kWarp];  // what they show each other, at every other meeting
  unsigned slowness;         // it moves in one of so many sweeps; 0: when nothing else can go on
  int laggard;               // a lane that moves when nothing else can go on; -1: none
};

// A product of a warpgroup, complete when all its threads have issued it.
struct Product {
  void (*run)(Product&);
  uint64_t a, b;  // descriptors
  uint8_t* memory = nullptr;
  int threads = 0;
  void* sums[kWarpgroup] = {};  // registers of each thread
  const uint32_t* operand[kWarpgroup] = {};
};
struct TensorCore {  // of a warpgroup: products in the order of their issue
  std::deque<Product> queue;
  int done = 0;
};

struct Cta {
  uint8_t* memory;
  unsigned block;
  std::vector<Warp> warps;
  std::vector<TensorCore> tensor_cores;
  Meeting all;
  int running;  // threads
};

struct Thread {
  ucontext_t start;
  jmp_buf context;
  bool started, over;
  unsigned index;
  int rank;  // of its CTA in the cluster
  Cta* cta;
  const void* condition;  // null: it can go on
  bool (*holds)(const void*);
  const char* waits_for;
  const void* waits_at;
  bool fenced;
  int issued;                   // products
  std::vector<int> group_ends;  // products issued when each group of them was committed
  std::unique_ptr<char[]> stack{new char[kStack]};
  static constexpr size_t kStack = 64 << 10;
};

enum class Pace { kAtOnce, kAtRandom, kLate };

struct Machine {
  std::vector<Cta> ctas;
  std::vector<Thread*> threads;
  unsigned threads_per_cta;
  size_t shared_bytes;
  Meeting cluster;
  std::vector<std::function<void()>> copies;
  Pace copy_pace, product_pace;
  bool engines_first;  // of what is left when nothing else can go on
  std::function<void()> kernel;
  int running;
};

inline Machine* machine;
inline Thread* self;
inline jmp_buf scheduler;
inline std::mt19937 random_source{1};

inline unsigned below(unsigned n) { return unsigned(random_source() % n); }
inline Warp& warp() { return self->cta->warps[self->index / kWarp]; }
inline TensorCore& tensor_core() { return self->cta->tensor_cores[self->index / kWarpgroup]; }

// swapcontext would call the kernel twice for each switch; fibres start with setcontext alone.
[[gnu::noinline]] inline void yield() {
  if (!_setjmp(self->context)) _longjmp(scheduler, 1);
}
[[gnu::noinline]] inline void resume(Thread& t) {
  self = &t;
  threadIdx.x = t.index, blockIdx.x = t.cta->block;
  if (_setjmp(scheduler)) return;
  if (t.started) _longjmp(t.context, 1);
  t.started = true;
  setcontext(&t.start);
}

template <class F>
void wait_until(const char* what, const void* where, const F& condition) {
  if (condition() && below(8)) return;  // else others move first
  self->condition = &condition, self->waits_for = what, self->waits_at = where;
  self->holds = [](const void* f) { return (*static_cast<const F*>(f))(); };
  yield();
}
inline void meet(Meeting& m, unsigned count, const char* what) {
  const unsigned generation = m.generation;
  if (++m.came == int(count)) {
    m.came = 0, ++m.generation;
  } else {
    wait_until(what, nullptr, [&m, generation] { return m.generation != generation; });
  }
}

// What all lanes of this thread's warp show.
inline const uint32_t* exchange(uint32_t mine) {
  Warp& w = warp();
  uint32_t* lanes = w.lanes[w.meeting.generation & 1];
  lanes[self->index % kWarp] = mine;
  meet(w.meeting, kWarp, "its warp");
  return lanes;
}

inline void run_thread() {
  machine->kernel();
  const auto& ends = self->group_ends;
  require(self->issued == (ends.empty() ? 0 : ends.back()), "a product was not committed");
  self->over = true, --machine->running, --self->cta->running;
  _longjmp(scheduler, 1);
}

inline bool ready(const Thread& t) { return !t.over && (!t.condition || t.holds(t.condition)); }

// Lets lanes [begin, end) of a warp go on, but for its laggard; false if none can.
inline bool step(unsigned first, int begin, int end, int laggard = -1) {
  bool moved = false;
  for (int lane = begin; lane < end; ++lane) {
    Thread& t = *machine->threads[first + lane];
    if (!ready(t) || lane == laggard) continue;
    t.condition = nullptr;
    resume(t);
    moved = true;
  }
  return moved;
}

inline bool is_time(Pace pace) { return pace == Pace::kAtOnce || (pace == Pace::kAtRandom && below(16) == 0); }

inline bool land_copy(size_t i) {
  std::swap(machine->copies[i], machine->copies.back());
  const auto copy = std::move(machine->copies.back());
  machine->copies.pop_back();
  copy();
  return true;
}
inline bool run_product(TensorCore& tensor) {
  if (tensor.queue.empty() || tensor.queue.front().threads < kWarpgroup) return false;
  tensor.queue.front().run(tensor.queue.front());
  tensor.queue.pop_front(), ++tensor.done;
  return true;
}
inline bool run_engines() {
  bool moved = false;
  for (size_t i = machine->copies.size(); i-- > 0;)
    if (is_time(machine->copy_pace)) moved = land_copy(i);
  for (Cta& cta : machine->ctas)
    for (TensorCore& tensor : cta.tensor_cores)
      while (is_time(machine->product_pace) && run_product(tensor)) moved = true;
  return moved;
}
// One action of a copy or a tensor core, and one of a slow warp or a laggard; false if there is none.
inline bool force_engine() {
  std::vector<std::function<bool()>> actions;
  for (size_t i = 0; i < machine->copies.size(); ++i) actions.push_back([i] { return land_copy(i); });
  for (Cta& cta : machine->ctas)
    for (TensorCore& tensor : cta.tensor_cores)
      if (!tensor.queue.empty()) actions.push_back([&tensor] { return run_product(tensor); });
  std::shuffle(actions.begin(), actions.end(), random_source);
  return std::any_of(actions.begin(), actions.end(), [](auto& act) { return act(); });
}
inline bool force_thread(const std::vector<unsigned>& priority) {
  for (const unsigned first : priority) {
    const Thread& t = *machine->threads[first];
    const Warp& w = t.cta->warps[t.index / kWarp];
    if (w.slowness == 0 && step(first, 0, kWarp, w.laggard)) return true;
    if (w.laggard >= 0 && step(first, w.laggard, w.laggard + 1)) return true;
  }
  return false;
}

[[noreturn]] inline void report_deadlock() {
  for (const Thread* t : machine->threads) {
    if (t->over) continue;
    std::fprintf(stderr, "block %u thread %u waits for %s", t->cta->block, t->index, t->waits_for);
    const auto offset = static_cast<const uint8_t*>(t->waits_at) - t->cta->memory;
    t->waits_at ? std::fprintf(stderr, " at +%td\n", offset) : std::fprintf(stderr, "\n");
  }
  fail("nothing can go on");
}

inline void set_up(Machine& m, unsigned ctas, unsigned first_block) {
  static std::vector<std::unique_ptr<Thread>> pool;  // stacks and memories are kept
  static std::vector<uint8_t*> memories;
  m.ctas.resize(ctas);
  for (unsigned c = 0; c < ctas; ++c) {
    if (memories.size() == c) memories.push_back(static_cast<uint8_t*>(std::aligned_alloc(1024, kSharedBytes)));
    Cta& cta = m.ctas[c];
    cta.memory = memories[c], cta.block = first_block + c, cta.running = int(m.threads_per_cta);
    std::memset(cta.memory, below(2) ? 0xff : 0xc1, kSharedBytes);
    cta.warps.resize(m.threads_per_cta / kWarp);
    cta.tensor_cores.resize((m.threads_per_cta + kWarpgroup - 1) / kWarpgroup);
    for (Warp& w : cta.warps) {
      w.slowness = below(6) ? 1 + below(4) * below(8) : 0;
      w.laggard = below(2) ? int(below(kWarp)) : -1;
    }
    for (unsigned i = 0; i < m.threads_per_cta; ++i) {
      if (pool.size() == m.threads.size()) pool.push_back(std::make_unique<Thread>());
      Thread& t = *pool[m.threads.size()];
      m.threads.push_back(&t);
      t.started = t.over = t.fenced = false, t.index = i, t.rank = int(c), t.cta = &cta, t.condition = nullptr;
      t.issued = 0, t.group_ends.clear();
      getcontext(&t.start);
      t.start.uc_stack.ss_sp = t.stack.get(), t.start.uc_stack.ss_size = Thread::kStack;
      makecontext(&t.start, run_thread, 0);
    }
  }
  m.copy_pace = Pace(below(3)), m.product_pace = Pace(below(3)), m.engines_first = below(2);
  m.running = int(m.threads.size());
}

// Runs `kernel` on a cluster; its blocks are [first_block, first_block + ctas) of `grid`.
inline void run_cluster(unsigned ctas, unsigned first_block, unsigned grid, unsigned threads, size_t shared_bytes,
                        std::function<void()> kernel) {
  Machine m;
  machine = &m;
  gridDim.x = grid, m.threads_per_cta = threads, m.shared_bytes = shared_bytes, m.kernel = std::move(kernel);
  set_up(m, ctas, first_block);
  std::vector<unsigned> order(m.threads.size() / kWarp);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i * kWarp;
  std::shuffle(order.begin(), order.end(), random_source);
  const std::vector<unsigned> priority = order;  // the last of these is as late as can be
  for (bool idle = false; m.running > 0;) {
    std::shuffle(order.begin(), order.end(), random_source);
    bool moved = run_engines();
    for (const unsigned first : order) {
      const Warp& w = m.threads[first]->cta->warps[m.threads[first]->index / kWarp];
      if (w.slowness && (idle || below(w.slowness) == 0)) moved |= step(first, 0, kWarp, w.laggard);
    }
    if (!moved && idle) {
      const bool forced =
          m.engines_first ? force_engine() || force_thread(priority) : force_thread(priority) || force_engine();
      if (!forced) report_deadlock();
    }
    idle = !moved;
  }
  require(m.copies.empty(), "a copy was not waited for");
  for (const Cta& cta : m.ctas)
    for (const TensorCore& tensor : cta.tensor_cores) require(tensor.queue.empty(), "a product was not waited for");
}
}  // namespace emulator
