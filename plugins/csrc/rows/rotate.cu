// Rotary embedding of rows of heads. Float32 inside; the output is rounded once.
//
// LL_INT8 1: what was turned is multiplied by a Hadamard matrix, as qkv_norm_rope's keys are, and leaves
// as int8, in units of a scale for each head.
#include "rows/hadamard.cuh"
#include "rows/rope.cuh"

#ifndef LL_INT8
#define LL_INT8 0
#endif

namespace {

struct Params {
  const uint8* input;
  const float* cosine;
  const float* sine;
  uint8* output;
  const float* scale;  // [heads]
  int rows;
  int tokens;
};
static_assert(sizeof(Params) == 48, "as plugins/kernels/rows.py lays it out");

__device__ __forceinline__ void store_output(const Params& params, int64 row, int vector,
                                             const Eight& x) {
  if constexpr (LL_INT8) {
    const Eight y = mixed(x);
    if (!in_row(vector)) return;
    const float factor = 1.0f / params.scale[column(vector) / kHeadDim];
    *reinterpret_cast<uint2*>(params.output + row * kDim + column(vector)) =
        pack_bytes_int8(y, factor);
  } else {
    store(params.output + row * (kDim * 2), vector, pack(x));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    rotate(const __grid_constant__ Params params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  uint4 words[kVectors];
  load_row(words, params.input + static_cast<int64>(row) * (kDim * 2));
  const Angles angles(params.cosine, params.sine, row % params.tokens);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store_output(params, row, i, rotated(unpack(words[i]), angles.cosine, angles.sine));
  }
}
