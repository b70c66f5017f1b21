#pragma once
// A row held by one block, a few vectors in each thread: short enough chains of loads and sums that the blocks of a few
// thousand rows keep memory busy from the first to the last.
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace longlive {
// The `size` elements at `data`, at most kMaxSize; a null `data` is not read. The block has kThreads threads, whatever
// the size.
template <class T>
struct BlockRow {
  static constexpr int kVectors = 3, kThreads = kMaxSize / kVectors / Vec<T>::kSize;
  static constexpr int kWarps = kThreads / 32;
  using Parts = float[kWarps];

  const int size;
  Vec<T> vector[kVectors];

  __device__ BlockRow(const T* data, int size) : size(size) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (data && has(i)) vector[i] = Vec<T>::load(data + offset(i));
  }

  static __device__ int offset(int i) { return (threadIdx.x + i * kThreads) * Vec<T>::kSize; }
  __device__ bool has(int i) const { return offset(i) < size; }

  __device__ void store(T* data) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (has(i)) vector[i].store(data + offset(i));
  }

  // Every thread receives the sum of f(element) over the row. `parts` is shared memory that no other call uses.
  template <class F>
  __device__ float sum(F f, Parts& parts) const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (has(i))
#pragma unroll
        for (int j = 0; j < Vec<T>::kSize; ++j) total += f(vector[i][j]);
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = total;
    __syncthreads();
    total = 0;
    for (const float part : parts) total += part;
    return total;
  }

  // Every thread receives the maximum over the block. `parts` is shared memory that no other call uses.
  static __device__ uint32_t max(uint32_t x, uint32_t (&parts)[kWarps]) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    for (const uint32_t part : parts) x = ::max(x, part);
    return x;
  }
};
}  // namespace longlive
