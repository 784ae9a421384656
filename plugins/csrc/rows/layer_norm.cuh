// A layer normalization of rows, and perhaps the sum before it, in one pass.
//
// Float32 inside; each output is rounded once. What is normalized is the sum as it was rounded, since
// that is what the residual stream keeps.
// LL_RESIDUAL 0: there is no y, and nothing is written but the normalized rows.
// LL_GATE 0: the gate is one.
// LL_NORM 0: no normalization; 1: * (1 + scale) + shift; 2: * weight + bias.
// LL_QUANTIZE 2: the normalized rows leave as float8 E4M3, multiplied by output_factor.
#pragma once

#include "rows/rows.cuh"

#ifndef LL_NORM
#define LL_NORM 1
#endif
#ifndef LL_QUANTIZE
#define LL_QUANTIZE 0
#endif

namespace {

struct Params {
  const uint8* x;
  const uint8* y;
  const uint8* gate;
  const uint8* scale;  // or weight
  const uint8* shift;  // or bias
  uint8* sum;
  uint8* normed;
  int rows;
  float epsilon;
  float output_factor;
};
static_assert(sizeof(Params) == 72, "as plugins/kernels/layer_norm.py lays it out");

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

__device__ __forceinline__ void add_update(uint4 (&words)[kVectors], const Params& params,
                                           int64 offset) {
  uint4 update[kVectors];
  load_row(update, params.y + offset);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    Eight x = unpack(words[i]);
    const Eight y = unpack(update[i]);
    Eight gate;
    if constexpr (LL_GATE) gate = unpack(load_shared_vector(params.gate, i));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x.value[j] = LL_GATE ? fmaf(y.value[j], gate.value[j], x.value[j]) : x.value[j] + y.value[j];
    }
    words[i] = pack(x);
    if (in_row(i)) *reinterpret_cast<uint4*>(params.sum + offset + column(i) * 2) = words[i];
  }
}

__device__ __forceinline__ void write_normed(const uint4 (&words)[kVectors], const Params& params,
                                             int64 offset) {
  float mean;
  float inverse;
  mean_and_inverse(words, params.epsilon, mean, inverse);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const Eight scale = unpack(load_shared_vector(params.scale, i));
    const Eight shift = unpack(load_shared_vector(params.shift, i));
    Eight x = unpack(words[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float factor = LL_NORM == 1 ? 1.0f + scale.value[j] : scale.value[j];
      x.value[j] = fmaf((x.value[j] - mean) * inverse, factor, shift.value[j]);
    }
    if (!in_row(i)) continue;
    if constexpr (LL_QUANTIZE) {
      *reinterpret_cast<uint2*>(params.normed + offset / 2 + column(i)) =
          pack_bytes_e4m3(x, params.output_factor);
    } else {
      *reinterpret_cast<uint4*>(params.normed + offset + column(i) * 2) = pack(x);
    }
  }
}

__device__ __forceinline__ void sum_and_norm(const Params& params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  uint4 words[kVectors];
  load_row(words, params.x + offset);
  if constexpr (LL_RESIDUAL) add_update(words, params, offset);
  if constexpr (LL_NORM != 0) write_normed(words, params, offset);
}

}  // namespace
