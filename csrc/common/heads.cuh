#pragma once
// Where a token's heads go, as vectors that are spread over a warp as in Row.
#include "common/row_scale.cuh"
#include "common/vec.cuh"

namespace longlive {
// As they are.
template <class T>
struct Heads {
  T* out;
  __device__ void store(int at, const float (&x)[Vec<T>::kSize]) const { Vec<T>::of(x).store(out + at); }
};

// As int8, each head with its scale, after a Hadamard matrix has mixed its channels. A head's elements are in 32 or 16
// lanes side by side.
struct HeadsInt8 {
  int8_t* values;       // [heads, 128]
  float* scale;         // of the first head
  int scale_of_head;    // from one head's to the next one's
  const float* offset;  // [heads, 128], taken from the elements first; may be null

  // Elements [at, at + kSize), by all lanes of the warp.
  template <int kSize>
  __device__ void store(int at, float (&x)[kSize]) const {
    constexpr int kLanes = kHeadDim / kSize;
    static_assert(kLanes == 32 || kLanes == 16);
    if (offset) subtract(x, offset + at);
    mix<kLanes>(x);
    uint32_t largest = largest_magnitude(x);
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2)
      largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lane));  // which leaves no head
    const RowScale of_head(largest);
    store_int8(values + at, x, of_head);
    if (at % kHeadDim == 0) scale[at / kHeadDim * scale_of_head] = of_head.scale;
  }

 private:
  // x_i = sum_j (-1)^popcount(i & j) x_j / sqrt(128), bit by bit of i: those within a lane, then those of lanes.
  template <int kLanes, int kSize>
  static __device__ void mix(float (&x)[kSize]) {
#pragma unroll
    for (int step = 1; step < kSize; step *= 2)
#pragma unroll
      for (int i = 0; i < kSize; ++i)
        if (!(i & step)) {
          const float a = x[i], b = x[i + step];
          x[i] = a + b, x[i + step] = a - b;
        }
#pragma unroll
    for (int lane = 1; lane < kLanes; lane *= 2) {
      const float sign = threadIdx.x & lane ? -1 : 1;
#pragma unroll
      for (float& element : x) element = fmaf(sign, element, __shfl_xor_sync(0xffffffffu, element, lane));
    }
#pragma unroll
    for (float& element : x) element *= 0.08838834764831845f;
  }

  template <int kSize>
  static __device__ void subtract(float (&x)[kSize], const float* y) {
#pragma unroll
    for (int i = 0; i < kSize; i += 4) {
      const float4 part = *reinterpret_cast<const float4*>(y + i);
      x[i] -= part.x, x[i + 1] -= part.y, x[i + 2] -= part.z, x[i + 3] -= part.w;
    }
  }
};
}  // namespace longlive
