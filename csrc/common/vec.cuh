#pragma once
// 16 bytes of elements, the widest load and store that a thread has; float32 to the outside.
#include <cstdint>
#include <type_traits>

#include "common/bf16.cuh"
#include "common/shapes.h"

namespace longlive {
template <class T>
struct alignas(16) Vec {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16>, "Vec converts float32 and bfloat16 alone");
  static constexpr int kSize = 16 / sizeof(T);
  uint32_t word[4];  // packed as in memory: an array of 16-bit elements would be spread over twice the registers

  static __device__ Vec load(const T* p) { return *reinterpret_cast<const Vec*>(p); }
  __device__ void store(T* p) const { *reinterpret_cast<Vec*>(p) = *this; }

  __device__ float operator[](int i) const {
    if constexpr (std::is_same_v<T, float>) {
      return __uint_as_float(word[i]);
    } else {
      return i % 2 ? high(word[i / 2]) : low(word[i / 2]);
    }
  }

  // Rounds to T, to nearest even.
  static __device__ Vec of(const float (&x)[kSize]) {
    Vec v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        v.word[i] = __float_as_uint(x[i]);
      } else {
        v.word[i] = pack(x[2 * i], x[2 * i + 1]);
      }
    }
    return v;
  }
};

// The `size` elements at `data`, at most kMaxSize, held by one warp: lane l has the vectors l, l + 32, l + 64, ..., so
// that each load of the warp is one run of 512 bytes, and all of them are in flight at once.
template <class T>
struct Row {
  static constexpr int kStride = 32 * Vec<T>::kSize;
  static constexpr int kVectors = ceil_div(kMaxSize, kStride);

  const int first = threadIdx.x % 32 * Vec<T>::kSize;  // this lane's first element
  const int size;
  Vec<T> vector[kVectors];

  __device__ Row(const T* data, int size) : size(size) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (has(i)) vector[i] = Vec<T>::load(data + offset(i));
  }

  __device__ int offset(int i) const { return first + i * kStride; }
  __device__ bool has(int i) const { return offset(i) < size; }

  // The sum of f(element) over this lane.
  template <class F>
  __device__ float sum(F f) const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (has(i))
#pragma unroll
        for (int j = 0; j < Vec<T>::kSize; ++j) total += f(vector[i][j]);
    return total;
  }
};
}  // namespace longlive
