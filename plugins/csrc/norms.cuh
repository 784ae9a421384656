// What normalizations and rotary embedding of a row consist of; float32, one warp to a row.
#pragma once

#include "rows.cuh"

namespace {

__device__ __forceinline__ void mean_and_inverse(const uint4 (&words)[kVectors], float epsilon,
                                                 float& mean, float& inverse) {
  Eight sums{};  // independent, so that no addition waits for the one before it
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const Eight x = unpack(words[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) sums.value[j] += x.value[j];
  }
  mean = warp_sum(total(sums)) / kDim;
  Eight squares{};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!in_row(i)) continue;
    const Eight x = unpack(words[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float centered = x.value[j] - mean;
      squares.value[j] = fmaf(centered, centered, squares.value[j]);
    }
  }
  inverse = rsqrtf(warp_sum(total(squares)) / kDim + epsilon);
}

__device__ __forceinline__ float inverse_rms(const uint4 (&words)[kVectors], float epsilon) {
  Eight squares{};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const Eight x = unpack(words[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) squares.value[j] = fmaf(x.value[j], x.value[j], squares.value[j]);
  }
  return rsqrtf(warp_sum(total(squares)) / kDim + epsilon);
}

__device__ __forceinline__ Eight rotate(const Eight& x, const float4& cosine, const float4& sine) {
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
