// causal_conv, causal_conv_int8 and conv_pixels: the kernel of causal_conv.cuh at the edge to torch.
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
                          const Tensor& x, int64_t channels, int scale = 1, bool in_int8 = false) {
  LL_CHECK(t.dim() == 5, name, " must have 5 dimensions, got ", t.dim());
  const int64_t group = conv::kGroupBytes / (in_int8 ? 1 : 2), groups = channels ? channels / group : t.size(1);
  check_tensor(t, name, {t.size(0), groups, scale * x.size(2), scale * x.size(3), group},
               in_int8 ? ScalarType::Char : ScalarType::BFloat16, x);
  LL_CHECK(t.size(1) * t.size(2) * t.size(3) * conv::kGroupBytes <= INT32_MAX, name, " must have smaller frames");
  LL_CHECK(indices.has_value(), name, "_frames must not be None");
  const std::string list = std::string(name) + "_frames";
  check_tensor(*indices, list.c_str(), {count}, ScalarType::Int, x, sizeof(int));
  return {t.data_ptr(), t.size(0), int(groups), data<const int>(*indices)};
}

void run(const conv::Call& call, const Tensor& x, const Tensor& weight) {
  const int count = processors(x.get_device_index());
  const cudaStream_t stream = current_stream(x.get_device_index());
  const bool found = conv::choose(call, count, [&]<class C>(C) {
    const conv::Params p = conv::params_of<C>(call);
    check_tensor(weight, "weight", {p.tiles.parts, p.part_bytes / C::kElement},
                 C::kInt8 ? ScalarType::Char : ScalarType::BFloat16, x, 128);
    LL_CHECK(!call.act.data || p.tiles.channel_parts == 1 || (C::kClusterNorm && p.tiles.channel_parts == 2),
             "act must be None for ", call.channels, " channels of this kind");
    LL_CUDA_CHECK(conv::launch<C>(conv::maps_of<C>(call), p, count, stream));
  });
  LL_CHECK(found, "bias must have 96 channels or a multiple of 192, got ", call.channels);
}

// What all convolutions take: where they read, and where results go, for frames `doubled` times as many and `scale` as
// large.
struct Tensors {
  const Tensor &x, &frames, &bias;
  const std::optional<Tensor>&residual, &residual_frames, &raw, &raw_frames, &act, &act_frames, &gain;
  double act_scale;
  const std::optional<Tensor>& saturated;

  conv::Call call(Op op, bool is_int8, double eps) const {
    LL_CHECK(x.dim() == 5 && frames.dim() == 1 && bias.dim() == 1,
             "x, frames and bias must have 5, 1 and 1 dimensions");
    LL_CHECK(raw || act, "raw and act must not both be None");
    const bool over_time = op == Op::kCausal || op == Op::kTime;
    const int64_t count = frames.size(0) - (over_time ? 2 : 0), doubled = op == Op::kTime ? 2 : 1;
    const int64_t channels = bias.size(0) / doubled, scale = op == Op::kUp ? 2 : 1;
    LL_CHECK(count > 0, "frames must have ", over_time ? 3 : 1, " indices or more, got ", frames.size(0));
    LL_CHECK(channels >= 96, "bias must have 96 channels or more, got ", channels);
    conv::Call call{};
    call.op = op, call.is_int8 = is_int8, call.frames = int(count), call.channels = int(channels);
    call.height = int(x.size(2)), call.width = int(x.size(3));
    call.x = frames_of(x, "x", frames, frames.size(0), x, 0, 1, is_int8);
    if (residual) call.residual = frames_of(*residual, "residual", residual_frames, count, x, is_int8 ? channels : 0);
    if (raw) call.raw = frames_of(*raw, "raw", raw_frames, doubled * count, x, channels, scale);
    check_tensor(bias, "bias", {doubled * channels}, ScalarType::Float, x);
    call.bias = data<const float>(bias), call.eps = float(eps / double(channels));
    if (act) take_act(call, doubled * count, scale);
    return call;
  }

  void take_act(conv::Call& call, int64_t count, int scale) const {
    const bool in_int8 = act->scalar_type() == ScalarType::Char;
    call.act = frames_of(*act, "act", act_frames, count, x, call.channels, scale, in_int8);
    LL_CHECK(gain.has_value(), "gain must not be None where act is not");
    check_tensor(*gain, "gain", {call.channels}, ScalarType::Float, x);
    call.gain = data<const float>(*gain);
    if (!in_int8) return;
    LL_CHECK(act_scale > 0, "act_scale must be above 0 where act is int8, got ", act_scale);
    LL_CHECK(saturated.has_value(), "saturated must not be None where act is int8");
    check_tensor(*saturated, "saturated", {1}, ScalarType::Long, x, sizeof(int64_t));
    call.act_inverse = float(1 / act_scale), call.saturated = saturated->data_ptr();
  }
};

void causal_conv(const Tensor& x, const Tensor& frames, const Tensor& weight, const Tensor& bias, int64_t kind,
                 const std::optional<Tensor>& residual, const std::optional<Tensor>& residual_frames,
                 const std::optional<Tensor>& raw, const std::optional<Tensor>& raw_frames,
                 const std::optional<Tensor>& act, const std::optional<Tensor>& act_frames,
                 const std::optional<Tensor>& gain, double act_scale, const std::optional<Tensor>& saturated,
                 double eps) {
  LL_CHECK(kind >= 0 && kind < 4, "kind must be 0 to 3, got ", kind);
  const Op op = Op(kind);
  LL_CHECK(!residual || op == Op::kCausal || op == Op::kPoint, "residual must be None for this kind");
  const Tensors tensors{x,          frames, bias,       residual, residual_frames, raw,
                        raw_frames, act,    act_frames, gain,     act_scale,       saturated};
  conv::Call call = tensors.call(op, false, eps);
  call.weight = weight.data_ptr();
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  run(call, x, weight);
}

void causal_conv_int8(const Tensor& x, const Tensor& frames, const Tensor& weight, const Tensor& scale,
                      const Tensor& bias, const std::optional<Tensor>& residual,
                      const std::optional<Tensor>& residual_frames, const std::optional<Tensor>& raw,
                      const std::optional<Tensor>& raw_frames, const std::optional<Tensor>& act,
                      const std::optional<Tensor>& act_frames, const std::optional<Tensor>& gain, double act_scale,
                      const std::optional<Tensor>& saturated, double eps) {
  const Tensors tensors{x,          frames, bias,       residual, residual_frames, raw,
                        raw_frames, act,    act_frames, gain,     act_scale,       saturated};
  conv::Call call = tensors.call(Op::kCausal, true, eps);
  check_tensor(scale, "scale", {call.channels}, ScalarType::Float, x);
  call.scale = data<const float>(scale), call.weight = weight.data_ptr();
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
  call.weight = weight.data_ptr(), call.bias = data<const float>(bias), call.pixels = out.data_ptr();
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  run(call, x, weight);
}
}  // namespace
}  // namespace longlive

STABLE_TORCH_LIBRARY_IMPL(longlive_C, CUDA, m) {
  m.impl("causal_conv", TORCH_BOX(&longlive::causal_conv));
  m.impl("causal_conv_int8", TORCH_BOX(&longlive::causal_conv_int8));
  m.impl("conv_pixels", TORCH_BOX(&longlive::conv_pixels));
}
