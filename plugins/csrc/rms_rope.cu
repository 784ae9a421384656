// RMS normalization over all heads, and rotary embedding, on rows of LL_DIM values. Float32 inside;
// each output is rounded once.
//
// qkv_norm_rope splits rows of q, k and v: q and k are normalized and rotated, v is copied.
// LL_PLAIN 1: keys also leave as they are before rotation, and what is rotated is that, rounded: a
// later pass that turns the kept keys gets the same bits.
// LL_QUANTIZE 2: q, k and v leave as float8 E4M3, in units of a scale for each head.
#include "norms.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#define LL_PLAIN 1
#endif
#ifndef LL_QUANTIZE
#define LL_QUANTIZE 0
#endif

namespace {

constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kHeadLanes = kHeadDim / 8;
static_assert(kDim % kHeadDim == 0 && 256 % kHeadDim == 0, "a head is a power of two of lanes");

struct SplitParams {
  const uint8* input;  // rows of q, k, v
  uint8* output[3];
  uint8* plain_key;
  const uint8* weight[2];
  const float* cosine;  // [tokens, head_dim / 2]
  const float* sine;
  const float* scale[3];  // [heads]
  int rows;
  int tokens;
  float epsilon;
};

struct NormParams {
  const uint8* input;
  const uint8* weight;
  uint8* output;
  int rows;
  float epsilon;
};

struct RotateParams {
  const uint8* input;
  const float* cosine;
  const float* sine;
  uint8* output;
  int rows;
  int tokens;
};

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

__device__ __forceinline__ Eight normalize(const uint4& words, const uint4& weight, float inverse) {
  Eight x = unpack(words);
  const Eight w = unpack(weight);
#pragma unroll
  for (int j = 0; j < 8; ++j) x.value[j] *= inverse * w.value[j];
  return x;
}

__device__ __forceinline__ void store(uint8* row, int vector, const uint4& words) {
  if (in_row(vector)) *reinterpret_cast<uint4*>(row + column(vector) * 2) = words;
}

__device__ __forceinline__ void store_output(const SplitParams& params, int which, int64 row,
                                             int vector, const Eight& x) {
  if constexpr (LL_QUANTIZE) {
    if (!in_row(vector)) return;
    const float factor = 1.0f / params.scale[which][column(vector) / kHeadDim];
    *reinterpret_cast<uint2*>(params.output[which] + row * kDim + column(vector)) =
        pack_bytes_e4m3(x, factor);
  } else {
    store(params.output[which] + row * (kDim * 2), vector, pack(x));
  }
}

__device__ __forceinline__ void norm_rope_row(const SplitParams& params, int which, int row,
                                              const uint4 (&words)[kVectors]) {
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  const Angles angles(params.cosine, params.sine, row % params.tokens);
  const float inverse = inverse_rms(words, params.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    Eight x = normalize(words[i], load_shared_vector(params.weight[which], i), inverse);
    if (LL_PLAIN && which == 1) {
      const uint4 plain = pack(x);
      store(params.plain_key + offset, i, plain);
      x = unpack(plain);
    }
    store_output(params, which, row, i, rotate(x, angles.cosine, angles.sine));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    qkv_norm_rope(const __grid_constant__ SplitParams params) {
  const int which = blockIdx.y;
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  uint4 words[kVectors];
  load_row(words, params.input + (static_cast<int64>(row) * 3 + which) * (kDim * 2));
  if (which < 2) {
    norm_rope_row(params, which, row, words);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store_output(params, 2, row, i, unpack(words[i]));
  }
}

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    rms_norm(const __grid_constant__ NormParams params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  uint4 words[kVectors];
  load_row(words, params.input + offset);
  const float inverse = inverse_rms(words, params.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const Eight x = normalize(words[i], load_shared_vector(params.weight, i), inverse);
    store(params.output + offset, i, pack(x));
  }
}

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    rotate_rows(const __grid_constant__ RotateParams params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  uint4 words[kVectors];
  load_row(words, params.input + offset);
  const Angles angles(params.cosine, params.sine, row % params.tokens);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store(params.output + offset, i, pack(rotate(unpack(words[i]), angles.cosine, angles.sine)));
  }
}
