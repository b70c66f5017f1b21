#pragma once
// How a warp stores a token's heads, whose vectors its lanes have as in Row: as they are, or as int8, after a Hadamard
// matrix has mixed each head's channels (kernels/quantize_keys.py). A head is in 32 or 16 lanes side by side.
#include "common/row_scale.cuh"
#include "common/vec.cuh"

namespace longlive {
// As they are.
template <class T>
struct Heads {
  T* out;
  // Elements [at, at + kSize), this lane's vector i.
  __device__ void store(int, int at, const float (&x)[Vec<T>::kSize]) const { Vec<T>::of(x).store(out + at); }
};

// x_i = sum_j (-1)^popcount(i & j) x_j / sqrt(128), bit by bit of i: those within a lane, then those of lanes.
template <int kSize>
__device__ void mix(float (&x)[kSize]) {
  constexpr int kLanes = kHeadDim / kSize;
  static_assert(kLanes == 32 || kLanes == 16);
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

// The largest magnitude of a head, to all lanes that have elements of it.
template <int kSize>
__device__ uint32_t largest_of_head(const float (&x)[kSize]) {
  uint32_t largest = largest_magnitude(x);
#pragma unroll
  for (int lane = kHeadDim / kSize / 2; lane > 0; lane /= 2)
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  return largest;
}

// A query: each of its heads has a scale.
struct QueryInt8 {
  int8_t* values;     // [heads, 128]
  float* scale;       // of the first head
  int scale_of_head;  // from one head's to the next one's

  // Elements [at, at + kSize), each lane's vector i; by all lanes of the warp.
  template <int kSize>
  __device__ void store(int, int at, float (&x)[kSize]) const {
    mix(x);
    const RowScale of_head(largest_of_head(x));
    store_int8(values + at, x, of_head);
    if (at % kHeadDim == 0) scale[at / kHeadDim * scale_of_head] = of_head.scale;
  }
};

// The largest magnitudes of the heads of kKeyRun keys.
struct alignas(16) LargestOfRun {
  uint32_t of[kMaxHeads][kKeyRun];

  __device__ uint32_t head(int i) const {
    static_assert(kKeyRun == 8);
    const uint4* keys = reinterpret_cast<const uint4*>(of[i]);
    const uint4 a = keys[0], b = keys[1];
    return max(max(max(a.x, a.y), max(a.z, a.w)), max(max(b.x, b.y), max(b.z, b.w)));
  }
};

// Blocks of kKeyRun warps, each with a key, that a multiprocessor must have room for.
template <class T>
constexpr int kRunBlocks = sizeof(T) == 2 ? 3 : 2;

// A key: the kKeyRun warps of a block have a run of them, the same head of which has one scale. A warp keeps its key
// until the largest magnitudes of all are known.
template <class T>
struct KeyInt8 {
  using R = Row<T>;
  static constexpr int kSize = Vec<T>::kSize;

  const int first, size;  // as in Row
  const float* offset;    // [heads, 128], taken from the elements first
  LargestOfRun& largest;  // in shared memory
  float kept[R::kVectors][kSize];

  __device__ KeyInt8(const R& row, const float* offset, LargestOfRun& largest)
      : first(row.first), size(row.size), offset(offset), largest(largest) {}

  // Elements [at, at + kSize), each lane's vector i; by all lanes of the warp.
  template <class V>
  __device__ void store(int i, int at, const V& x) {
#pragma unroll
    for (int j = 0; j < kSize; j += 4) {
      const float4 part = *reinterpret_cast<const float4*>(offset + at + j);
      kept[i][j] = x[j] - part.x, kept[i][j + 1] = x[j + 1] - part.y;
      kept[i][j + 2] = x[j + 2] - part.z, kept[i][j + 3] = x[j + 3] - part.w;
    }
    mix(kept[i]);
    const uint32_t of_head = largest_of_head(kept[i]);
    if (at % kHeadDim == 0) largest.of[at / kHeadDim][threadIdx.x / 32] = of_head;
  }

  // After a __syncthreads(), all of it: to `values` [heads, 128], and the scales from `scale` on, scale_of_head from
  // one head's to the next one's.
  __device__ void finish(int8_t* values, float* scale, int scale_of_head) const {
#pragma unroll
    for (int i = 0; i < R::kVectors; ++i) {
      const int at = first + i * R::kStride, head = at / kHeadDim;
      if (at >= size) break;
      const RowScale of_run(largest.head(head));
      store_int8(values + at, kept[i], of_run);
      if (threadIdx.x < 32 && at % kHeadDim == 0) scale[head * scale_of_head] = of_run.scale;
    }
  }
};
}  // namespace longlive
