// quantize_values: the kernel of quantize_values.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/launch.h"
#include "elementwise/quantize_values.cuh"

namespace longlive {
namespace {
void quantize_values(const Tensor& v, const Tensor& v_offset, const Tensor& v_scale, const Tensor& v_ring,
                     const Tensor& slots) {
  const int64_t vector = vector_size(v, "v");
  LL_CHECK(v.dim() == 3, "v must have 3 dimensions, got ", v.dim());
  LL_CHECK(v_ring.dim() == 3, "v_ring must have 3 dimensions, got ", v_ring.dim());
  LL_CHECK(slots.dim() == 1, "slots must have 1 dimension, got ", slots.dim());
  const int64_t rows = v.size(0), heads = v.size(1), head_dim = v.size(2), room = v_ring.size(2);
  const int64_t frames = slots.size(0), size = heads * head_dim, channels = kTileVectors * vector;
  check_like(v, "v", v.scalar_type(), v);
  check_aligned(v, "v");
  LL_CHECK(v.stride(2) == 1 && v.stride(1) == head_dim && v.stride(0) % vector == 0,
           "v must have contiguous rows that start at multiples of ", kVectorBytes, " bytes");
  LL_CHECK(size > 0 && size % channels == 0, "v must have a multiple of ", channels, " channels, got ", size);
  LL_CHECK(frames > 0 && rows % (frames * kKeyRun) == 0, "v must have a multiple of ", kKeyRun,
           " tokens for each of slots' ", frames, " frames, got ", rows);
  check_tensor(v_ring, "v_ring", {heads, head_dim, room}, ScalarType::Float8_e4m3fn, v);
  LL_CHECK(room % kValueGroup == 0 && rows <= room, "v_ring must have a multiple of ", kValueGroup,
           " tokens, at least ", rows, ", got ", room);
  check_tensor(v_offset, "v_offset", {heads, head_dim}, ScalarType::Float, v);
  check_tensor(v_scale, "v_scale", {heads, head_dim}, ScalarType::Float, v);
  check_tensor(slots, "slots", {frames}, ScalarType::Long, v, sizeof(int64_t));
  const int64_t tokens = rows / frames, parts = size / channels;
  LL_CHECK(tokens <= INT32_MAX && parts * (rows / kValueGroup + 2 * frames) <= INT32_MAX,
           "v must have fewer tokens, got ", rows);
  const int tiles = value_tiles(int(tokens));
  if (tiles == 0) return;
  torch::stable::accelerator::DeviceGuard guard(v.get_device_index());
  launch_as(v, [&]<class T>(T, cudaStream_t stream) {
    const QuantizeValuesParams<T> p{data<T>(v),
                                    data<float>(v_offset),
                                    data<float>(v_scale),
                                    data<uint8_t>(v_ring),
                                    data<int64_t>(slots),
                                    v.stride(0),
                                    room,
                                    int(tokens),
                                    tiles,
                                    int(parts)};
    quantize_values_kernel<T><<<unsigned(frames * tiles * parts), kTileThreads, 0, stream>>>(p);
  });
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("quantize_values", TORCH_BOX(&longlive::quantize_values)); }
