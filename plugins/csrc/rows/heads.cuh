// Rows of heads of LL_HEAD_DIM values with a scale for each head, eight neighbors to a thread.
// LL_FORMAT is that of the 8-bit side, 2: float8 E4M3; 3: int8.
#pragma once

#include "common/vectors.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif
#ifndef LL_FORMAT
#define LL_FORMAT 2
#endif

namespace {

constexpr int kHeadVectors = LL_HEAD_DIM / 8;

struct Params {
  const void* input;
  void* output;
  const float* scale;  // [heads]
  int64 vectors;
  int heads;
};
static_assert(sizeof(Params) == 40, "as plugins/kernels/quantize.py lays it out");

__device__ __forceinline__ float head_scale(const Params& params, int64 vector) {
  return params.scale[vector / kHeadVectors % params.heads];
}

}  // namespace
