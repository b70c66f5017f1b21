// The list of what this library offers. Each operator's file under csrc/ attaches its CUDA kernel to the
// schema here; kernels/*.py gives the same operator its meaning and its other implementations.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(longlive_C, m) {
  m.def("modulate_norm(Tensor x, Tensor shift, Tensor scale, float eps) -> Tensor");
  m.def(
      "qk_norm_rope_store(Tensor qkv, Tensor q_gain, Tensor k_gain, Tensor rope_time, Tensor rope_space, "
      "Tensor(a!) k_ring, Tensor(b!) v_ring, Tensor(c!) k_sink, Tensor slots, float eps) -> Tensor");
}
