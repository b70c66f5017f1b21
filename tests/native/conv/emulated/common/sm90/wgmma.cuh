#pragma once
#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
inline void mma_fence() {}
inline void mma_commit() {
  emulated::self().groups.push_back(std::move(emulated::self().issued));
  emulated::self().issued.clear();
  const int late = emulated::machine->lateness;
  if (late == 0 || (late == 1 && emulated::machine->random() % 2)) emulated::finish_groups(0);
}
template <int kPending>
void mma_wait() {
  emulated::yield();
  emulated::finish_groups(kPending);
}
template <int kSize>
void pin(float (&)[kSize]) {}
}  // namespace longlive::sm90
