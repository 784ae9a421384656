// Layer normalization followed by a modulation that is shared by a group of rows (a frame), or by an
// affine weight and bias; and the gated residual. All over rows of LL_DIM values.
//
// LL_MODULATE 1: round(round(round(norm) * round(1 + scale)) + shift), as the unfused 16-bit
// computation rounds. LL_MODULATE 0: norm * weight + bias in float32, rounded once.
// LL_QUANTIZE 2: the result leaves as float8 E4M3, multiplied by 1 / output_scale.
#include "norms.cuh"

#ifndef LL_MODULATE
#define LL_MODULATE 1
#define LL_QUANTIZE 0
#endif

namespace {

struct NormParams {
  const uint8* input;
  uint8* output;
  const uint8* scale;  // or weight
  const uint8* shift;  // or bias
  const float* output_scale;
  int64 group_bytes;  // between the modulations of two groups
  int rows;
  int rows_per_group;
  float epsilon;
};

struct GateParams {
  const uint8* residual;
  const uint8* update;
  const uint8* gate;
  uint8* output;
  int64 group_bytes;
  int rows;
  int rows_per_group;
};

__device__ __forceinline__ uint4 modulate(const Eight& x, const uint4& scale, const uint4& shift) {
  if constexpr (LL_MODULATE) {
    const uint4 ones = make_uint4(kOnes, kOnes, kOnes, kOnes);
    return add(multiply(pack(x), add(scale, ones)), shift);
  }
  const Eight weight = unpack(scale);
  const Eight bias = unpack(shift);
  Eight y;
#pragma unroll
  for (int j = 0; j < 8; ++j) y.value[j] = fmaf(x.value[j], weight.value[j], bias.value[j]);
  return pack(y);
}

__device__ __forceinline__ void norm_row(const NormParams& params, int row,
                                         const uint4 (&words)[kVectors]) {
  const int64 group = row / params.rows_per_group * params.group_bytes;
  float mean;
  float inverse;
  mean_and_inverse(words, params.epsilon, mean, inverse);
  const float factor = LL_QUANTIZE ? 1.0f / *params.output_scale : 1.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const uint4 scale = load_shared_vector(params.scale + group, i);
    const uint4 shift = load_shared_vector(params.shift + group, i);
    Eight x = unpack(words[i]);
#pragma unroll
    for (int j = 0; j < 8; ++j) x.value[j] = (x.value[j] - mean) * inverse;
    const uint4 y = modulate(x, scale, shift);
    if (!in_row(i)) continue;
    if constexpr (LL_QUANTIZE) {
      uint8* target = params.output + static_cast<int64>(row) * kDim + column(i);
      *reinterpret_cast<uint2*>(target) = pack_bytes_e4m3(unpack(y), factor);
    } else {
      uint8* target = params.output + static_cast<int64>(row) * (kDim * 2) + column(i) * 2;
      *reinterpret_cast<uint4*>(target) = y;
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    norm_modulate(const __grid_constant__ NormParams params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  uint4 words[kVectors];
  load_row(words, params.input + static_cast<int64>(row) * (kDim * 2));
  norm_row(params, row, words);
}

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    gated_residual(const __grid_constant__ GateParams params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  uint4 residual[kVectors];
  uint4 update[kVectors];
  load_row(residual, params.residual + offset);
  load_row(update, params.update + offset);
  const uint8* gate_row = params.gate + row / params.rows_per_group * params.group_bytes;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!in_row(i)) continue;
    const uint4 gate = load_shared_vector(gate_row, i);
    *reinterpret_cast<uint4*>(params.output + offset + column(i) * 2) =
        add(residual[i], multiply(update[i], gate));
  }
}
