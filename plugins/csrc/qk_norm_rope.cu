// RMS normalization over all heads, rotary embedding, and the way to where attention reads: queries
// to a buffer, keys (and, as they are, values) to their slot of the cache.
//
// Rounding points are those of the unfused computation: normalized values are rounded to 16 bits,
// then multiplied by the weight and rounded again, then rotated in float32 and rounded once more.
// LL_QUANTIZE: 0 none, 2 float8 E4M3 by given scales, 3 int8 (queries by their own row maximum).
#include "norms.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#define LL_QUANTIZE 0
#endif

namespace {

constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kQuantize = LL_QUANTIZE;
constexpr int kHeadLanes = kHeadDim / 8;
static_assert(kDim % kHeadDim == 0 && 256 % kHeadDim == 0, "a head is a power of two of lanes");

struct Params {
  const uint8* input[3];  // q, k, v rows; v may be null
  uint8* output[3];
  const uint8* weight[2];
  const float* cosine;  // [tokens, head_dim / 2]
  const float* sine;
  const float* static_scale[2];  // [heads], for what is quantized by a given scale
  float* query_scale;            // [batch, heads, tokens], written for int8 queries
  int64 input_row_bytes[3];
  int64 output_batch_bytes[3];
  int64 output_row_bytes[3];
  int batch;
  int tokens;
  float epsilon;
};

__device__ __forceinline__ Eight normalize(const uint4& words, const uint4& weight, float inverse) {
  Eight x = unpack(words);
#pragma unroll
  for (int j = 0; j < 8; ++j) x.value[j] *= inverse;
  return unpack(multiply(pack(x), weight));
}

__device__ __forceinline__ float head_maximum(const Eight& x) {
  float maximum = 0.0f;
#pragma unroll
  for (int j = 0; j < 8; ++j) maximum = fmaxf(maximum, fabsf(x.value[j]));
#pragma unroll
  for (int offset = kHeadLanes / 2; offset > 0; offset /= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, offset));
  }
  return maximum;
}

__device__ __forceinline__ void store(const Params& params, int which, uint8* row, int vector,
                                      const Eight& x, int batch, int token) {
  const int head = column(vector) / kHeadDim;
  if constexpr (kQuantize == 0) {
    if (in_row(vector)) *reinterpret_cast<uint4*>(row + column(vector) * 2) = pack(x);
    return;
  }
  uint2 bytes;
  if (kQuantize == 3 && which == 0) {
    const float maximum = head_maximum(x);
    bytes = pack_bytes_int8<false>(x, maximum > 0.0f ? __fdividef(127.0f, maximum) : 0.0f);
    if (lane_id() % kHeadLanes == 0 && in_row(vector)) {
      const int heads = kDim / kHeadDim;
      params.query_scale[(batch * heads + head) * params.tokens + token] = maximum / 127.0f;
    }
  } else {
    const float scale = in_row(vector) ? params.static_scale[which][head] : 1.0f;
    const float factor = __fdividef(1.0f, scale);
    bytes = kQuantize == 3 ? pack_bytes_int8<true>(x, factor) : pack_bytes_e4m3(x, factor);
  }
  if (in_row(vector)) *reinterpret_cast<uint2*>(row + column(vector)) = bytes;
}

struct RowPlace {
  int batch;
  int token;
  __device__ __forceinline__ RowPlace(const Params& params, int row)
      : batch(row / params.tokens), token(row - batch * params.tokens) {}
};

__device__ __forceinline__ void finish_row(const Params& params, int which, int row,
                                           const uint4 (&words)[kVectors]) {
  const RowPlace place(params, row);
  uint8* target = params.output[which] + place.batch * params.output_batch_bytes[which] +
                  place.token * params.output_row_bytes[which];
  if (which == 2) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (in_row(i)) *reinterpret_cast<uint4*>(target + column(i) * 2) = words[i];
    }
    return;
  }
  const int pair = place.token * (kHeadDim / 2) + lane_id() % kHeadLanes * 4;
  const float4 cosine = *reinterpret_cast<const float4*>(params.cosine + pair);
  const float4 sine = *reinterpret_cast<const float4*>(params.sine + pair);
  const float inverse = inverse_rms(words, params.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const uint4 weight = load_shared_vector(params.weight[which], i);
    const Eight x = rotate(normalize(words[i], weight, inverse), cosine, sine);
    store(params, which, target, i, x, place.batch, place.token);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    qk_norm_rope(const __grid_constant__ Params params) {
  const int which = blockIdx.y;
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.batch * params.tokens) return;
  uint4 words[kVectors];
  load_row(words, params.input[which] + row * params.input_row_bytes[which]);
  finish_row(params, which, row, words);
}
