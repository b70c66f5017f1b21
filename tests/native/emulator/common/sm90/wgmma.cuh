#pragma once
#include <cuda_bf16.h>

#include "common/sm90/barrier.cuh"
#include "common/sm90/tma.cuh"

namespace longlive::sm90 {
inline void mma_fence() {}
inline void mma_commit() { emulator::self->group_ends.push_back(emulator::self->issued); }
template <int kPending>
void mma_wait() {
  const auto& ends = emulator::self->group_ends;
  if (int(ends.size()) <= kPending) return;
  const auto& tensor = emulator::block->tensor[emulator::thread_index.x / 128];
  const int until = ends[ends.size() - 1 - kPending];
  emulator::wait_until([&tensor, until] { return tensor.done >= until; });
}
template <class T>
void pin(T&) {}

inline uint64_t matrix_descriptor(const void* matrix, int leading, int stride = 1024) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const auto field = [](uint32_t bytes) { return uint64_t(bytes >> 4 & 0x3fff); };
  return kSwizzle128 | field(stride) << 32 | field(leading) << 16 | field(shared_address(matrix));
}

struct Matrix {
  uint32_t start, leading, stride;
  explicit Matrix(uint64_t d) : start(field(d, 0)), leading(field(d, 16)), stride(field(d, 32)) {
    emulator::require(d >> 62 == 1 && (d >> 46 & 0xffff) == 0, "a descriptor with bits out of place");
  }
  static uint32_t field(uint64_t d, int at) { return uint32_t(d >> at & 0x3fff) << 4; }
  static float read(uint32_t address) {
    uint16_t x;
    emulator::require(address + 2 <= emulator::kSharedBytes, "a product that reads outside of shared memory");
    std::memcpy(&x, emulator::shared + swizzled(address), 2);
    return widen(x);
  }
  // Rows along the depth k, and along the outer dimension n.
  float depth_row(int n, int k) const { return read(start + n % 8 * 128 + n / 8 * stride + 2 * k); }
  float outer_row(int n, int k) const {
    return read(start + n % 64 * 2 + n / 64 * leading + k % 8 * 128 + k / 8 * stride);
  }
};

inline void issue(float* sums, const uint32_t* operand, std::function<void(emulator::Product&)> run) {
  const int thread = emulator::thread_index.x;
  auto& tensor = emulator::block->tensor[thread / 128];
  const size_t at = emulator::self->issued++ - tensor.done;
  if (at == tensor.queue.size()) tensor.queue.emplace_back();
  auto& product = tensor.queue[at];
  product.sums[thread % 128] = sums, product.operand[thread % 128] = operand;
  ++product.threads, product.run = std::move(run);
}

// Row and column of sum e of a thread.
inline int row_of(int thread, int e) { return thread / 32 * 16 + thread % 32 / 4 + 8 * (e / 2 % 2); }
inline int column_of(int thread, int e) { return 8 * (e / 4) + 2 * (thread % 4) + e % 2; }

template <int kColumns>
void multiply(emulator::Product& p, bool accumulate, const float (&left)[64][16], const float (&right)[16][kColumns]) {
  for (int thread = 0; thread < 128; ++thread)
    for (int e = 0; e < kColumns / 2; ++e) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += left[row_of(thread, e)][k] * right[k][column_of(thread, e)];
      p.sums[thread][e] = (accumulate ? p.sums[thread][e] : 0) + sum;
    }
}

template <bool kAccumulate, int kSize>
void mma_ss(float (&d)[kSize], uint64_t a, uint64_t b) {
  issue(d, nullptr, [=](emulator::Product& p) {
    const Matrix from_a(a), from_b(b);
    float left[64][16], right[16][2 * kSize];
    for (int k = 0; k < 16; ++k) {
      for (int m = 0; m < 64; ++m) left[m][k] = from_a.depth_row(m, k);
      for (int n = 0; n < 2 * kSize; ++n) right[k][n] = from_b.depth_row(n, k);
    }
    multiply(p, kAccumulate, left, right);
  });
}

// Register j of a thread's operand is row j % 2 of its two, columns 8 (j / 2) + 2 (lane % 4) and the next one.
inline void mma_rs(float (&d)[64], const uint32_t* a, uint64_t b) {
  issue(d, a, [=](emulator::Product& p) {
    const Matrix from_b(b);
    float left[64][16], right[16][128];
    for (int thread = 0; thread < 128; ++thread)
      for (int j = 0; j < 4; ++j)
        for (int half = 0; half < 2; ++half)
          left[thread / 32 * 16 + thread % 32 / 4 + 8 * (j % 2)][8 * (j / 2) + 2 * (thread % 4) + half] =
              widen(uint16_t(p.operand[thread][j] >> 16 * half));
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 128; ++n) right[k][n] = from_b.outer_row(n, k);
    multiply(p, true, left, right);
  });
}
}  // namespace longlive::sm90
