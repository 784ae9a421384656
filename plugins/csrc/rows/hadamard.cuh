// A head of LL_HEAD_DIM values, eight to a lane, times the orthonormal Hadamard matrix of its size, in
// Sylvester's order; float32. Each step adds and subtracts values whose places differ in one bit: the
// three lowest bits are of the same lane, the others of the lane's number.
#pragma once

#include "rows/rope.cuh"

namespace {

static_assert(kHeadDim == 128 || kHeadDim == 64, "the matrix's unit is known for these");

__device__ __forceinline__ void mix_inside(Eight& x) {
#pragma unroll
  for (int apart = 1; apart < 8; apart *= 2) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j & apart) continue;
      const float a = x.value[j];
      const float b = x.value[j + apart];
      x.value[j] = a + b;
      x.value[j + apart] = a - b;
    }
  }
}

__device__ __forceinline__ Eight mixed(Eight x) {
  constexpr float unit = kHeadDim == 128 ? 0.08838834764831845f : 0.125f;
  mix_inside(x);
#pragma unroll
  for (int apart = 1; apart < kHeadLanes; apart *= 2) {
    const float sign = lane_id() & apart ? -1.0f : 1.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x.value[j] = fmaf(sign, x.value[j], __shfl_xor_sync(0xffffffffu, x.value[j], apart));
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) x.value[j] *= unit;
  return x;
}

// The largest magnitude of a head.
__device__ __forceinline__ float head_max(const Eight& x) {
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(x.value[j]));
#pragma unroll
  for (int apart = 1; apart < kHeadLanes; apart *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, apart));
  }
  return largest;
}

}  // namespace
