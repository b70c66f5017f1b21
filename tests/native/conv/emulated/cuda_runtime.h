#pragma once
// As much of CUDA as the kernels of csrc/conv need to run on a CPU: see emulated.h.
#define __device__

struct float2 {
  float x, y;
};

#include "emulated.h"
