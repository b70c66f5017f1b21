#pragma once
// The copy engine (TMA): boxes of a tensor and runs of bytes from global to shared memory, issued by one thread,
// reported to a barrier.
#include "common/sm90/barrier.cuh"
#include "common/sm90/tensor_map.h"

namespace longlive::sm90 {
// prefetch.tensormap
__device__ inline void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// cp.async.bulk.tensor: the box whose first element has these coordinates, innermost first. It lands dense, in the
// order of its coordinates, swizzled if the map says so. What lies outside of the tensor, before its start too, arrives
// as zeros and counts as bytes.
__device__ inline void load_tile(void* to, const TensorMap& map, Barrier& full, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(shared_address(&full))
      : "memory");
}
__device__ inline void load_tile(void* to, const TensorMap& map, Barrier& full, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(shared_address(&full))
      : "memory");
}

// cp.async.bulk.prefetch.tensor: the box to L2 alone.
__device__ inline void prefetch_tile(const TensorMap& map, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(c0), "r"(c1),
               "r"(c2), "r"(c3)
               : "memory");
}

// The same box for all CTAs of the cluster in `kMask`, to the same place in each, reported to the same barrier of each.
template <uint16_t kMask>
__device__ void load_tile_to_cluster(void* to, const TensorMap& map, Barrier& full, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(shared_address(&full)), "h"(kMask)
      : "memory");
}

// cp.async.bulk: a run of bytes; address, size and destination are multiples of 16.
__device__ inline void load_bytes(void* to, const void* from, int bytes, Barrier& full) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(&full))
               : "memory");
}
}  // namespace longlive::sm90
