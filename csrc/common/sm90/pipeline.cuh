#pragma once
// Producer and consumers: the roles of a CTA's warpgroups, and the ring of buffers between them.
#include <cstdint>

#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
// One producer warpgroup, of which one warp works, and two consumers.
constexpr int kWarpgroup = 128, kWarpgroupWarps = kWarpgroup / 32;
constexpr int kConsumers = 2, kThreads = (1 + kConsumers) * kWarpgroup;
// A multiprocessor has 65536 registers: 168 for each of 384 threads at launch, then redistributed.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

// The stage that a role uses next, and the parity of the phase in which that stage is filled.
template <int kStages>
struct PipelineState {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// The barriers of a ring of kStages buffers. `kSpare` more empty barriers belong to no stage and nobody waits for them:
// a consumer may release "the stage before" when it has not used any.
template <int kStages, int kSpare = 0>
struct Pipeline {
  using State = PipelineState<kStages>;

  Barrier full[kStages], empty[kStages + kSpare];

  // `consumers`: how many warps must release a stage before it is empty. One thread fills it, with its copies.
  __device__ void init(int consumers) {
    for (Barrier& barrier : full) barrier.init(1);
    for (Barrier& barrier : empty) barrier.init(consumers);
  }

  // Producer, all lanes of a warp: returns once the stage is empty. The first lane, which issues the copies, must not
  // run ahead of the others: to them a barrier that is a phase further looks like one that has not completed this
  // phase.
  __device__ void acquire(const State& at) {
    empty[at.stage].wait(at.phase ^ 1);
    __syncwarp();
  }
  // Consumer: returns once the stage is full.
  __device__ void wait(const State& at) { full[at.stage].wait(at.phase); }
  // Consumer, all lanes of a warp; the first one arrives.
  __device__ void release(int stage, int lane) {
    if (lane == 0) empty[stage].arrive();
  }
};
}  // namespace longlive::sm90
