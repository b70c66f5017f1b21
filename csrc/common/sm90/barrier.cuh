#pragma once
// Barriers in shared memory (mbarrier), and shared memory itself. One instruction each; the PTX name stands beside it.
#include <cstdint>

namespace longlive::sm90 {
__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// The dynamic shared memory of the CTA.
template <class T>
__device__ T& shared_memory() {
  extern __shared__ __align__(1024) uint8_t memory[];
  static_assert(alignof(T) <= 1024);
  return *reinterpret_cast<T*>(memory);
}

// A phase ends when all arrivals have come and all announced bytes have landed; then the next one begins. A wait tells
// phases apart by their parity alone: 0 for the first.
struct alignas(8) Barrier {
  uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // Arrives, and announces bytes that copies will bring in this phase.
  __device__ void arrive_and_expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  __device__ bool try_wait(uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(this)), "r"(parity)
        : "memory");
    return done;
  }
  // Returns once the phase of this parity has ended. On a fresh barrier the phase "before the first" has parity 1.
  __device__ void wait(uint32_t parity) {
    while (!try_wait(parity)) {
    }
  }
};

// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Orders this thread's plain accesses to shared memory before later ones by the copy engine and the tensor cores.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
}  // namespace longlive::sm90
