// ring_advance: write slots and rotations of the frames at `start` in a window, which are read on the device. A thread
// has one rotation.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/launch.h"

namespace longlive {
namespace {
struct Params {
  const int64_t *start, *window;  // [1]
  const double* freqs;            // [pairs]
  int64_t* slots;                 // [frames]
  float2* rope_time;              // [frames, pairs]
  float2* sink_time;              // [sink_frames, pairs]
  int64_t sink, origin;
  int frames, sink_frames, pairs;
};

// (cos, sin) of an angle up to 2^40, to an absolute error below 2e-15 before they are rounded.
// Precision: the angle modulo 2 pi, which is a sum of two doubles; the first subtraction is exact.
__device__ float2 rotation_of(double angle) {
  constexpr double kTwoPi = 6.283185307179586, kTwoPiRest = 2.4492935982947064e-16, kPerTwoPi = 0.15915494309189535;
  const double whole = rint(angle * kPerTwoPi);
  const double rest = fma(-whole, kTwoPiRest, fma(-whole, kTwoPi, angle));
  double sin, cos;
  sincospi(2 * kPerTwoPi * rest, &sin, &cos);
  return {float(cos), float(sin)};
}

__global__ void __launch_bounds__(kThreads) ring_advance_kernel(const Params p) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int64_t start = *p.start, window = *p.window;
  if (i < p.frames) {
    const int64_t frame = start + i;
    p.slots[i] = frame - p.origin < p.sink ? frame - p.origin : p.sink + (frame - p.sink) % (window - p.sink);
  }
  const int row = i / p.pairs, sink_row = row - p.frames;
  const double freq = p.freqs[i % p.pairs];
  if (row < p.frames) {
    p.rope_time[i] = rotation_of(double(start + row) * freq);
  } else if (sink_row < p.sink_frames) {
    const int64_t first = max(p.origin, start + p.frames - window);
    p.sink_time[i - p.frames * p.pairs] = rotation_of(double(first + sink_row) * freq);
  }
}

void ring_advance(const Tensor& start, const Tensor& freqs, const Tensor& slots, const Tensor& rope_time,
                  const Tensor& sink_time, const Tensor& window, int64_t sink, int64_t origin) {
  LL_CHECK(freqs.dim() == 1 && freqs.size(0) > 0, "freqs must have 1 dimension, not empty");
  LL_CHECK(slots.dim() == 1, "slots must have 1 dimension, got ", slots.dim());
  LL_CHECK(sink_time.dim() == 3, "sink_time must have 3 dimensions, got ", sink_time.dim());
  const int64_t frames = slots.size(0), pairs = freqs.size(0), sink_frames = sink_time.size(0);
  check_tensor(start, "start", {1}, ScalarType::Long, start, sizeof(int64_t));
  check_tensor(freqs, "freqs", {pairs}, ScalarType::Double, start, sizeof(double));
  check_tensor(slots, "slots", {frames}, ScalarType::Long, start, sizeof(int64_t));
  check_tensor(rope_time, "rope_time", {frames, pairs, 2}, ScalarType::Float, start, sizeof(float2));
  check_tensor(sink_time, "sink_time", {sink_frames, pairs, 2}, ScalarType::Float, start, sizeof(float2));
  check_tensor(window, "window", {1}, ScalarType::Long, start, sizeof(int64_t));
  LL_CHECK(sink >= 0, "sink must be at least 0, got ", sink);
  LL_CHECK(sink_frames == 0 || sink_frames == sink, "sink_time must have ", sink, " frames or none, got ", sink_frames);
  LL_CHECK(frames > 0, "slots must have at least 1 frame, got 0");
  LL_CHECK(origin >= 0, "origin must be at least 0, got ", origin);
  const int64_t rotations = (frames + sink_frames) * pairs;
  LL_CHECK(rotations <= INT32_MAX - kThreads, "freqs must fit one launch, got ", pairs);
  torch::stable::accelerator::DeviceGuard guard(start.get_device_index());
  const Params p{data<int64_t>(start),
                 data<int64_t>(window),
                 data<double>(freqs),
                 data<int64_t>(slots),
                 data<float2>(rope_time),
                 data<float2>(sink_time),
                 sink,
                 origin,
                 int(frames),
                 int(sink_frames),
                 int(pairs)};
  const unsigned blocks = unsigned(ceil_div(rotations, kThreads));
  ring_advance_kernel<<<blocks, kThreads, 0, current_stream(start.get_device_index())>>>(p);
  LL_CUDA_CHECK(cudaGetLastError());
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("ring_advance", TORCH_BOX(&longlive::ring_advance)); }
