#pragma once
#include <cuda_bf16.h>

#include <type_traits>

#include "common/sm90/descriptor.cuh"
#include "common/sm90/tma.cuh"

struct __nv_fp8_e4m3;

namespace longlive::sm90 {
template <class T>
constexpr int kDepth = std::is_same_v<T, __nv_bfloat16> ? 16 : 32;
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;

inline void mma_fence() { emulator::self->fenced = true; }
inline void mma_commit() {
  emulator::self->fenced = false;
  emulator::self->group_ends.push_back(emulator::self->issued);
}
template <int kPending>
void mma_wait() {
  const auto& ends = emulator::self->group_ends;
  if (int(ends.size()) <= kPending) return;
  const int& done = emulator::tensor_core().done;
  const int until = ends[ends.size() - 1 - kPending];
  emulator::wait_until("products", nullptr, [&done, until] { return done >= until; });
}

inline void issue(void (*run)(emulator::Product&), void* sums, const uint32_t* operand, uint64_t a, uint64_t b) {
  emulator::require(emulator::self->fenced, "a group of products without a fence before it");
  auto& tensor = emulator::tensor_core();
  const size_t at = emulator::self->issued++ - tensor.done;
  if (at == tensor.queue.size()) tensor.queue.push_back({run, a, b});
  auto& product = tensor.queue[at];
  emulator::require(product.run == run && product.a == a && product.b == b, "threads disagree on a product");
  const int thread = emulator::self->index % emulator::kWarpgroup;
  product.sums[thread] = sums, product.operand[thread] = operand, ++product.threads;
  product.memory = emulator::self->cta->memory;
}

template <class T>
Sum<T> decode(const uint8_t* x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return widen(uint16_t(x[0] | x[1] << 8));
  } else if constexpr (std::is_same_v<T, int8_t>) {
    return int8_t(*x);
  } else {
    static_assert(std::is_same_v<T, __nv_fp8_e4m3>, "no product of this type");
    const int exponent = *x >> 3 & 15, mantissa = *x & 7;
    const float value = exponent == 15 && mantissa == 7 ? NAN
                        : exponent                      ? std::ldexp(8.f + mantissa, exponent - 10)
                                                        : std::ldexp(float(mantissa), -9);
    return *x & 0x80 ? -value : value;
  }
}

// A matrix as its descriptor says, in runs of 16 bytes.
template <class T>
struct Matrix {
  static constexpr int kRun = 16 * kDepth<T> / 32;  // elements
  uint8_t* memory;
  uint32_t start, leading, stride;
  bool is_swizzled;

  Matrix(uint8_t* memory, uint64_t d)
      : memory(memory), start(field(d, 0)), leading(field(d, 16)), stride(field(d, 32)), is_swizzled(d >> 62 == 1) {
    emulator::require((d >> 62 | 1) == 1 && (d >> 46 & 0xffff) == 0, "a descriptor with bits out of place");
  }
  static uint32_t field(uint64_t d, int at) { return uint32_t(d >> at & 0x3fff) << 4; }

  void read(uint32_t address, Sum<T> (&run)[kRun]) const {
    const uint32_t at = (is_swizzled ? swizzled(address) : address) - emulator::kBase;
    emulator::require(at + 16 <= emulator::machine->shared_bytes, "a product that reads outside of shared memory");
    for (int i = 0; i < kRun; ++i) run[i] = decode<T>(memory + at + i * 16 / kRun);
  }
  // K-major: rows along the depth. `half`: of the 32 bytes of depth.
  void k_major(int n, int half, Sum<T> (&run)[kRun]) const {
    read(is_swizzled ? start + n % 8 * 128 + n / 8 * stride + 16 * half
                     : start + n % 8 * 16 + n / 8 * stride + half * leading,
         run);
  }
  // MN-major under the swizzle: rows along the outer dimension. n is a multiple of kRun.
  void mn_major(int n, int k, Sum<T> (&run)[kRun]) const {
    constexpr int kRow = 8 * kRun;
    read(start + n % kRow * 16 / kRun + n / kRow * leading + k % 8 * 128 + k / 8 * stride, run);
  }
};

// [64, depth] from the registers of all threads: register j has 4 bytes of row lane / 4 + 8 (j % 2).
template <class T>
void read_registers(const emulator::Product& p, Sum<T> (&left)[64][kDepth<T>]) {
  constexpr int kEach = 4 * kDepth<T> / 32;
  for (int thread = 0; thread < 128; ++thread)
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < kEach; ++i)
        left[thread / 32 * 16 + thread % 32 / 4 + 8 * (j % 2)][(j / 2 * 4 + thread % 4) * kEach + i] =
            decode<T>(reinterpret_cast<const uint8_t*>(p.operand[thread] + j) + i * 4 / kEach);
}

// Sum e of a thread is row lane / 4 + 8 (e / 2 % 2) of its warp's 16, column 8 (e / 4) + 2 (lane % 4) + e % 2.
template <class T, int N, bool kAccumulate>
void multiply(emulator::Product& p, const Sum<T> (&left)[64][kDepth<T>], const Sum<T> (&right)[kDepth<T>][N]) {
  for (int m = 0; m < 64; ++m) {
    Sum<T> row[N] = {};
    for (int k = 0; k < kDepth<T>; ++k)
      for (int n = 0; n < N; ++n) row[n] += left[m][k] * right[k][n];
    for (int n = 0; n < N; ++n) {
      const int thread = m / 16 * 32 + m % 8 * 4 + n % 8 / 2;
      Sum<T>& sum = static_cast<Sum<T>*>(p.sums[thread])[n / 8 * 4 + m % 16 / 8 * 2 + n % 2];
      sum = kAccumulate ? sum + row[n] : row[n];
    }
  }
}

template <class T, int N>
void read_k_major(const Matrix<T>& from, Sum<T> (&right)[kDepth<T>][N]) {
  Sum<T> run[Matrix<T>::kRun];
  for (int n = 0; n < N; ++n)
    for (int half = 0; half < 2; ++half) {
      from.k_major(n, half, run);
      for (int k = 0; k < Matrix<T>::kRun; ++k) right[half * Matrix<T>::kRun + k][n] = run[k];
    }
}

template <class T, int N, bool kAccumulate = true>
void mma_ss(Sum<T>* d, uint64_t a, uint64_t b) {
  const auto run = [](emulator::Product& p) {
    Sum<T> left[64][kDepth<T>], right[kDepth<T>][N], part[Matrix<T>::kRun];
    const Matrix<T> from_a(p.memory, p.a), from_b(p.memory, p.b);
    for (int m = 0; m < 64; ++m)
      for (int half = 0; half < 2; ++half) {
        from_a.k_major(m, half, part);
        std::copy(std::begin(part), std::end(part), left[m] + half * Matrix<T>::kRun);
      }
    read_k_major<T, N>(from_b, right);
    multiply<T, N, kAccumulate>(p, left, right);
  };
  issue(run, d, nullptr, a, b);
}

template <class T, int N = 128, bool kAccumulate = true>
void mma_rs(Sum<T>* d, const uint32_t* a, uint64_t b) {
  const auto run = [](emulator::Product& p) {
    Sum<T> left[64][kDepth<T>], right[kDepth<T>][N], part[Matrix<T>::kRun];
    const Matrix<T> from_b(p.memory, p.b);
    read_registers<T>(p, left);
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      for (int k = 0; k < kDepth<T>; ++k)
        for (int n = 0; n < N; n += Matrix<T>::kRun) {
          from_b.mn_major(n, k, part);
          std::copy(std::begin(part), std::end(part), right[k] + n);
        }
    } else {
      read_k_major<T, N>(from_b, right);
    }
    multiply<T, N, kAccumulate>(p, left, right);
  };
  issue(run, d, a, 0, b);
}
}  // namespace longlive::sm90
