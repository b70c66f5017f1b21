// causal_conv and conv_pixels: the kernel of causal_conv.cuh at the edge to torch.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/check.h"
#include "common/launch.h"
#include "conv/plan.h"

namespace longlive {
namespace {
using conv::Op;

// `count` of t's frames; they have x's size, times `scale`, and `channels`, or any number of them for 0.
conv::FrameList frames_of(const Tensor& t, const char* name, const std::optional<Tensor>& indices, int64_t count,
                          const Tensor& x, int64_t channels, int scale = 1) {
  LL_CHECK(t.dim() == 5, name, " must have 5 dimensions, got ", t.dim());
  const int64_t groups = channels ? channels / conv::kGroup : t.size(1);
  check_tensor(t, name, {t.size(0), groups, scale * x.size(2), scale * x.size(3), conv::kGroup}, ScalarType::BFloat16,
               x);
  LL_CHECK(t.size(1) * t.size(2) * t.size(3) * conv::kGroup <= INT32_MAX, name, " must have smaller frames");
  LL_CHECK(indices.has_value(), name, "_frames must not be None");
  const std::string list = std::string(name) + "_frames";
  check_tensor(*indices, list.c_str(), {count}, ScalarType::Int, x, sizeof(int));
  return {data<bf16>(t), t.size(0), int(groups * conv::kGroup), data<const int>(*indices)};
}

void run(const conv::Call& call, const Tensor& x, const Tensor& weight) {
  const int count = processors(x.get_device_index());
  const cudaStream_t stream = current_stream(x.get_device_index());
  const auto map = [&]<class C>(C, const conv::FrameList& t) {
    return conv::patch_map<C>(t.data, t.count, t.channels, call.height, call.width);
  };
  const bool found = conv::choose(call, count, [&]<class C>(C config) {
    const conv::Params p = conv::params_of<C>(call);
    check_tensor(weight, "weight", {p.tiles.parts, p.part_size}, ScalarType::BFloat16, x, 128);
    LL_CHECK(!call.act.data || p.tiles.channel_parts == 1 || (C::kClusterNorm && p.tiles.channel_parts == 2),
             "act must be None for ", call.channels, " channels of this kind");
    const auto residual = call.residual.data ? call.residual : call.x;  // a stand-in that is never read
    LL_CUDA_CHECK(conv::launch<C>(map(config, call.x), map(config, residual), p, count, stream));
  });
  LL_CHECK(found, "bias must have 96 channels or a multiple of 192, got ", call.channels);
}

void causal_conv(const Tensor& x, const Tensor& frames, const Tensor& weight, const Tensor& bias, int64_t kind,
                 const std::optional<Tensor>& residual, const std::optional<Tensor>& residual_frames,
                 const std::optional<Tensor>& raw, const std::optional<Tensor>& raw_frames,
                 const std::optional<Tensor>& act, const std::optional<Tensor>& act_frames,
                 const std::optional<Tensor>& gain, double eps) {
  LL_CHECK(kind >= 0 && kind < 4, "kind must be 0 to 3, got ", kind);
  LL_CHECK(x.dim() == 5 && frames.dim() == 1 && bias.dim() == 1, "x, frames and bias must have 5, 1 and 1 dimensions");
  LL_CHECK(raw || act, "raw and act must not both be None");
  const Op op = Op(kind);
  const bool over_time = op == Op::kCausal || op == Op::kTime;
  const int64_t count = frames.size(0) - (over_time ? 2 : 0), doubled = op == Op::kTime ? 2 : 1;
  const int64_t channels = bias.size(0) / doubled, scale = op == Op::kUp ? 2 : 1;
  LL_CHECK(count > 0, "frames must have ", over_time ? 3 : 1, " indices or more, got ", frames.size(0));
  LL_CHECK(channels >= 96, "bias must have 96 channels or more, got ", channels);
  LL_CHECK(!residual || op == Op::kCausal || op == Op::kPoint, "residual must be None for this kind");
  conv::Call call{};
  call.op = op, call.frames = int(count), call.channels = int(channels);
  call.height = int(x.size(2)), call.width = int(x.size(3));
  call.x = frames_of(x, "x", frames, frames.size(0), x, 0);
  if (residual) call.residual = frames_of(*residual, "residual", residual_frames, count, x, 0);
  if (raw) call.raw = frames_of(*raw, "raw", raw_frames, doubled * count, x, channels, scale);
  if (act) call.act = frames_of(*act, "act", act_frames, doubled * count, x, channels, scale);
  check_tensor(bias, "bias", {doubled * channels}, ScalarType::Float, x);
  LL_CHECK(!act || gain, "gain must not be None where act is not");
  if (gain) check_tensor(*gain, "gain", {channels}, ScalarType::Float, x);
  call.weight = data<const bf16>(weight), call.bias = data<const float>(bias);
  call.gain = gain ? data<const float>(*gain) : nullptr;
  call.eps = float(eps / double(channels));
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  run(call, x, weight);
}

void conv_pixels(const Tensor& x, const Tensor& frames, const Tensor& weight, const Tensor& bias, const Tensor& out) {
  LL_CHECK(x.dim() == 5 && frames.dim() == 1, "x and frames must have 5 and 1 dimensions");
  LL_CHECK(frames.size(0) > 2, "frames must have 3 indices or more, got ", frames.size(0));
  conv::Call call{};
  call.op = Op::kCausal, call.frames = int(frames.size(0) - 2), call.channels = conv::kPixelChannels;
  call.height = int(x.size(2)), call.width = int(x.size(3));
  call.x = frames_of(x, "x", frames, frames.size(0), x, 0);
  check_tensor(bias, "bias", {conv::kPixelChannels}, ScalarType::Float, x);
  call.as_bytes = out.scalar_type() == ScalarType::Byte;
  const ScalarType dtype = call.as_bytes ? ScalarType::Byte : ScalarType::BFloat16;
  check_tensor(out, "out", {call.frames, x.size(2), x.size(3), 3}, dtype, x, int(out.element_size()));
  call.weight = data<const bf16>(weight), call.bias = data<const float>(bias), call.pixels = out.data_ptr();
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  run(call, x, weight);
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("causal_conv", TORCH_BOX(&longlive::causal_conv));
  m.impl("conv_pixels", TORCH_BOX(&longlive::conv_pixels));
}
