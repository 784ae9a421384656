// Heads of a row in int8, in units of a scale for each of them, which is stored beside them.
#pragma once

#include "rows/hadamard.cuh"

namespace {

constexpr int kHeads = kDim / kHeadDim;

// What a head's values are multiplied by. All lanes of it are here together, those beyond the row too.
__device__ __forceinline__ float factor_of_row(float* row_scale, int64 row, int vector,
                                               const Eight& x) {
  constexpr float kLeast = 1e-12f;  // a row of zeros has a unit, too
  const float largest = fmaxf(head_max(x), kLeast);
  if (in_row(vector) && lane_id() % kHeadLanes == 0) {
    row_scale[row * kHeads + column(vector) / kHeadDim] = largest / 127.0f;
  }
  return 127.0f / largest;
}

}  // namespace
