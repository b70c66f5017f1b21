// What compute-sanitizer's racecheck knows of a warp that one lane speaks for: a producer warp and a consumer warp pass
// values on through two stages, as csrc/attention does. All lanes read a stage; after __syncwarp one lane arrives for
// them ("lane"), or each arrives for itself ("all"). The memory model orders both: __syncwarp orders the lanes' reads
// before the arrival, and the arrival releases them.
//   nvcc -std=c++17 -arch=sm_90a -I csrc tests/native/warp_release.cu -o release
//   compute-sanitizer --tool racecheck ./release lane|all
// On an H200 (CUDA 13.0) racecheck reports a hazard for "lane" and none for "all"; no value is wrong in either.
#include <cstdio>
#include <cstring>

#include "common/sm90/barrier.cuh"

namespace sm90 = longlive::sm90;

constexpr int kStages = 2;

__device__ void hand_over(sm90::Barrier& barrier, int lane, bool all) {
  __syncwarp();
  if (all || lane == 0) barrier.arrive();
}

__global__ void pass_on(int rounds, bool all, float* wrong) {
  __shared__ float values[kStages][32];
  __shared__ sm90::Barrier full[kStages], empty[kStages];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0)
    for (int i = 0; i < kStages; ++i) full[i].init(all ? 32 : 1), empty[i].init(all ? 32 : 1);
  __syncthreads();
  for (int i = 0; i < rounds; ++i) {
    const int stage = i % kStages, phase = i / kStages % 2;
    if (threadIdx.x < 32) {
      empty[stage].wait(phase ^ 1);
      values[stage][lane ^ 1] = float(i * 64 + lane);
      hand_over(full[stage], lane, all);
    } else {
      full[stage].wait(phase);
      if (values[stage][lane ^ 1] != float(i * 64 + lane)) atomicAdd(wrong, 1.0f);
      hand_over(empty[stage], lane, all);
    }
  }
}

int main(int count, char** arguments) {
  float* wrong;
  float found = 0;
  if (cudaMalloc(&wrong, sizeof found) != cudaSuccess || cudaMemset(wrong, 0, sizeof found) != cudaSuccess) return 2;
  pass_on<<<1, 64>>>(1000, count > 1 && !std::strcmp(arguments[1], "all"), wrong);
  if (cudaMemcpy(&found, wrong, sizeof found, cudaMemcpyDeviceToHost) != cudaSuccess) return 3;
  std::printf("%g values were wrong\n", found);
  return found != 0;
}
