#pragma once
// CTAs that run together and reach each other's shared memory. One instruction each.
#include "common/sm90/barrier.cuh"

namespace longlive::sm90 {
__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// barrier.cluster: all threads of all CTAs of the cluster, what they wrote before included.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same without an order of memory: for barriers initialised before (fence_barrier_init), and before leaving.
__device__ inline void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// The address, for the instructions below, of p's counterpart in another CTA of the cluster.
__device__ inline uint32_t remote_address(const void* p, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}
__device__ inline void remote_store(uint32_t to, float x) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
// Arrives at another CTA's barrier; this thread's writes, and those it has synchronised with, come first.
__device__ inline void remote_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// The same by a thread that has only read, at any CTA's barrier: a release to the whole cluster would wait for a fence
// of the whole chip.
__device__ inline void remote_release(uint32_t barrier) {
  asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Barrier::wait, for arrivals from other CTAs: what they wrote before is seen after.
__device__ inline void wait_for_cluster(Barrier& barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
}
}  // namespace longlive::sm90
