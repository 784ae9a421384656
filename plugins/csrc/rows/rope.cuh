// Rotary embedding of a row of heads of LL_HEAD_DIM values, neighbors as pairs; float32.
#pragma once

#include "rows/rows.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif

namespace {

constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kHeadLanes = kHeadDim / 8;
static_assert(kDim % kHeadDim == 0 && 256 % kHeadDim == 0, "a head is a power of two of lanes");

// A lane's channels have the same place in their head in all vectors of a row.
struct Angles {
  float4 cosine;
  float4 sine;
  __device__ __forceinline__ Angles(const float* cosines, const float* sines, int token) {
    const int pair = token * (kHeadDim / 2) + lane_id() % kHeadLanes * 4;
    cosine = *reinterpret_cast<const float4*>(cosines + pair);
    sine = *reinterpret_cast<const float4*>(sines + pair);
  }
};

__device__ __forceinline__ Eight rotated(const Eight& x, const float4& cosine, const float4& sine) {
  const float c[4] = {cosine.x, cosine.y, cosine.z, cosine.w};
  const float s[4] = {sine.x, sine.y, sine.z, sine.w};
  Eight y;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const float a = x.value[2 * pair];
    const float b = x.value[2 * pair + 1];
    y.value[2 * pair] = a * c[pair] - b * s[pair];
    y.value[2 * pair + 1] = a * s[pair] + b * c[pair];
  }
  return y;
}

}  // namespace
