// One call of the kernel, by C's conventions: on the GPU when nvcc compiles this, emulated when g++ does.
#include "conv/plan.h"

using namespace longlive;
using namespace longlive::conv;

template <class C>
int run(const Call& call, int processors, int lateness, int seed, void* stream) {
  const Params p = params_of<C>(call);
  const auto map = [&](const Tensor4& t) {
    return patch_map<C>(t.data, t.count, t.channels, call.height, call.width);
  };
  const sm90::TensorMap input = map(call.x), residual = map(call.residual.data ? call.residual : call.x);
#ifdef __CUDACC__
  const cudaError_t error = launch<C>(input, residual, p, processors, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) fprintf(stderr, "launch: %s\n", cudaGetErrorString(error));
  return error != cudaSuccess;
#else
  const int cluster = cluster_size(p), grid = std::min(p.items.count(), processors / cluster * cluster);
  for (int block = 0; block < grid; block += cluster)
    emulated::launch(cluster, block, grid, sizeof(Shared<C>), lateness, seed + block,
                     [&] { convolve<C>(input, residual, p, *reinterpret_cast<Shared<C>*>(emulated::cta().memory)); });
  return 0;
#endif
}

// `variant`: 0 as the library would choose; 1, 2: low or high tiles of 192 channels.
extern "C" int convolve_once(const Call* call, int variant, int processors, int lateness, int seed, void* stream) {
  int status = -1;
  const auto with = [&]<class C>(C) { status = run<C>(*call, processors, lateness, seed, stream); };
  if (variant == 0) {
    choose(*call, processors, with);
  } else if (call->op == Op::kCausal && call->channels % 192 == 0) {
    if (variant == 1) with(Config<Kind::kCausal, 192, 1>{});
    if (variant == 2) with(Config<Kind::kCausal, 192, 2>{});
  }
  return status;
}

extern "C" int call_size() { return sizeof(Call); }
