// RMS normalization of a row; float32.
#pragma once

#include "rows/rows.cuh"

namespace {

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

__device__ __forceinline__ Eight normalize(const uint4& words, const uint4& weight, float inverse) {
  Eight x = unpack(words);
  const Eight w = unpack(weight);
#pragma unroll
  for (int j = 0; j < 8; ++j) x.value[j] *= inverse * w.value[j];
  return x;
}

}  // namespace
