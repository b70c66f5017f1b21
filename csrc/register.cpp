// The list of what this library offers. Each operator's file under csrc/ attaches its CUDA kernel to the
// schema here; kernels/*.py gives the same operator its meaning and its other implementations.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(longlive_C, m) {
  m.def("modulate_norm(Tensor x, Tensor shift, Tensor scale, float eps) -> Tensor");
  m.def("modulate_norm_int8(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor)");
  m.def("overlay_blend(Tensor(a!) frames, Tensor panel, int y, int x) -> ()");
  m.def(
      "qk_norm_rope_store(Tensor qkv, Tensor q_gain, Tensor k_gain, Tensor rope_time, Tensor rope_space, "
      "Tensor(a!) k_ring, Tensor(b!) v_ring, Tensor(c!) k_sink, Tensor slots, float eps) -> Tensor");
  m.def(
      "qk_norm_rope_store_int8(Tensor qkv, Tensor q_gain, Tensor k_gain, Tensor rope_time, Tensor rope_space, "
      "Tensor k_offset, Tensor(a!) k_ring, Tensor(b!) k_scale, Tensor(c!)? v_ring, Tensor(d!) k_sink, Tensor slots, "
      "float eps) -> (Tensor, Tensor)");
  m.def("quantize(Tensor x, int groups) -> (Tensor, Tensor)");
  m.def("quantize_keys(Tensor k, Tensor k_offset, Tensor(a!) k_ring, Tensor(b!) k_scale, Tensor slots) -> ()");
  m.def("quantize_values(Tensor v, Tensor v_offset, Tensor v_scale, Tensor(a!) v_ring, Tensor slots) -> ()");
  m.def(
      "residual_norm(Tensor(a!) x, Tensor y, Tensor? gate, Tensor shift, Tensor scale, float offset, float eps) "
      "-> Tensor");
  m.def(
      "residual_norm_int8(Tensor(a!) x, Tensor y, Tensor? gate, Tensor shift, Tensor scale, float offset, float eps) "
      "-> (Tensor, Tensor)");
  m.def(
      "ring_advance(Tensor start, Tensor freqs, Tensor(a!) slots, Tensor(b!) rope_time, Tensor(c!) sink_time, "
      "Tensor window, int sink, int origin) -> ()");
  m.def(
      "causal_conv(Tensor x, Tensor frames, Tensor weight, Tensor bias, int kind, Tensor? residual, "
      "Tensor? residual_frames, Tensor(a!)? raw, Tensor? raw_frames, Tensor(b!)? act, Tensor? act_frames, "
      "Tensor? gain, float act_scale, Tensor(c!)? saturated, float eps) -> ()");
  m.def(
      "causal_conv_int8(Tensor x, Tensor frames, Tensor weight, Tensor scale, Tensor bias, Tensor? residual, "
      "Tensor? residual_frames, Tensor(a!)? raw, Tensor? raw_frames, Tensor(b!)? act, Tensor? act_frames, "
      "Tensor? gain, float act_scale, Tensor(c!)? saturated, float eps) -> ()");
  m.def("conv_pixels(Tensor x, Tensor frames, Tensor weight, Tensor bias, Tensor(a!) out) -> ()");
  m.def("int8_linear(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor bias) -> Tensor");
  m.def(
      "int8_linear_gelu(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor bias, int groups) "
      "-> (Tensor, Tensor)");
  m.def("ring_attention(Tensor q, Tensor k_ring, Tensor v_ring, Tensor valid) -> Tensor");
  m.def(
      "ring_attention_int8(Tensor q, Tensor q_scale, Tensor k_ring, Tensor k_scale, Tensor v_ring, Tensor valid) "
      "-> Tensor");
  m.def(
      "ring_attention_fp8(Tensor q, Tensor q_scale, Tensor k_ring, Tensor k_scale, Tensor v_ring, Tensor v_scale, "
      "Tensor v_offset, Tensor valid) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor gain, float eps) -> Tensor");
  m.def("rotate_sinks(Tensor k_sink, Tensor rope_time, Tensor rope_space, Tensor(a!) k_ring) -> ()");
  m.def(
      "rotate_sinks_int8(Tensor k_sink, Tensor rope_time, Tensor rope_space, Tensor k_offset, Tensor(a!) k_ring, "
      "Tensor(b!) k_scale) -> ()");
  m.def("x0_renoise(Tensor x, Tensor flow, Tensor? noise, Tensor sigmas, int index) -> Tensor");
}
