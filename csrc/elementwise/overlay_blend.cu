// overlay_blend: a small RGBA picture over a block of frames, in place. A thread has one pixel of one frame.
#include <cuda_bf16.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/launch.h"

namespace longlive {
namespace {
constexpr int kPixels = 256;        // per thread block
constexpr int kMaxFrames = 0xffff;  // the grid's second dimension

template <class T>
struct Params {
  T* frames;            // the pixel of frame 0 that the panel's first pixel covers
  const uchar4* panel;  // [area / width, width]
  int64_t frame_stride, row_stride, column_stride, channel_stride;  // in elements
  int width, area;
};

// Precision: nearest, in integers, as the reference does it.
__device__ inline uint8_t blend(uint8_t under, int colour, int alpha) {
  return static_cast<uint8_t>((under * (255 - alpha) + colour * alpha + 127) / 255);
}

// Precision: float32, rounded once by the caller.
__device__ inline float blend(float under, int colour, int alpha) {
  return under + (float(colour) / 255.f - under) * (float(alpha) / 255.f);
}

__device__ inline __nv_bfloat16 blend(__nv_bfloat16 under, int colour, int alpha) {
  return __float2bfloat16_rn(blend(__bfloat162float(under), colour, alpha));
}

template <class T>
__global__ void __launch_bounds__(kPixels) overlay_blend_kernel(const Params<T> p) {
  const int pixel = blockIdx.x * kPixels + threadIdx.x;
  if (pixel >= p.area) return;
  const uchar4 over = p.panel[pixel];
  T* under =
      p.frames + blockIdx.y * p.frame_stride + pixel / p.width * p.row_stride + pixel % p.width * p.column_stride;
  const T red = under[0], green = under[p.channel_stride], blue = under[2 * p.channel_stride];
  under[0] = blend(red, over.x, over.w);
  under[p.channel_stride] = blend(green, over.y, over.w);
  under[2 * p.channel_stride] = blend(blue, over.z, over.w);
}

void check_inside(const char* name, int64_t start, int64_t size, int64_t limit) {
  LL_CHECK(start >= 0 && start <= limit - size, name, " must put the panel's ", size, " pixels inside the frames' ",
           limit, ", got ", start);
}

void overlay_blend(const Tensor& frames, const Tensor& panel, int64_t y, int64_t x) {
  const ScalarType dtype = frames.scalar_type();
  LL_CHECK(dtype == ScalarType::Byte || dtype == ScalarType::BFloat16 || dtype == ScalarType::Float,
           "frames must be uint8, bfloat16 or float32, got ", toString(dtype));
  LL_CHECK(frames.dim() == 4 && frames.size(3) == 3, "frames must be [T, H, W, 3], got ", text(frames.sizes()));
  for (int64_t i = 0; i < 4; ++i) LL_CHECK(frames.size(i) <= 1 || frames.stride(i) != 0, "frames must not be expanded");
  LL_CHECK(panel.dim() == 3, "panel must have 3 dimensions, got ", panel.dim());
  const int64_t height = panel.size(0), width = panel.size(1), count = frames.size(0), area = height * width;
  check_tensor(panel, "panel", {height, width, 4}, ScalarType::Byte, frames, sizeof(uchar4));
  check_inside("y", y, height, frames.size(1));
  check_inside("x", x, width, frames.size(2));
  LL_CHECK(count <= kMaxFrames, "frames must be at most ", kMaxFrames, ", got ", count);
  LL_CHECK(area <= INT32_MAX - kPixels, "panel must have fewer pixels, got ", area);
  if (count == 0 || area == 0) return;
  torch::stable::accelerator::DeviceGuard guard(frames.get_device_index());
  const auto launch = [&]<class T>(T) {
    const Params<T> p{data<T>(frames) + y * frames.stride(1) + x * frames.stride(2),
                      data<const uchar4>(panel),
                      frames.stride(0),
                      frames.stride(1),
                      frames.stride(2),
                      frames.stride(3),
                      int(width),
                      int(area)};
    const dim3 grid(static_cast<unsigned>(ceil_div(area, kPixels)), static_cast<unsigned>(count));
    overlay_blend_kernel<T><<<grid, kPixels, 0, current_stream(frames.get_device_index())>>>(p);
  };
  if (dtype == ScalarType::Byte) {
    launch(uint8_t{});
  } else if (dtype == ScalarType::Float) {
    launch(float{});
  } else {
    launch(__nv_bfloat16{});
  }
  LL_CUDA_CHECK(cudaGetLastError());
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) { m.impl("overlay_blend", TORCH_BOX(&longlive::overlay_blend)); }
