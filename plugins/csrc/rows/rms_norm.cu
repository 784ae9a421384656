// RMS normalization of rows of LL_DIM values. Float32 inside; the output is rounded once.
//
// LL_INT8 1: each head is multiplied by a Hadamard matrix and leaves as int8, in units of a scale for
// each row of it, which leaves too: queries as attention in int8 takes them.
#include "rows/rms.cuh"

#ifndef LL_INT8
#define LL_INT8 0
#endif
#if LL_INT8
#include "rows/int8_rows.cuh"
#endif

namespace {

struct Params {
  const uint8* input;
  const uint8* weight;
  uint8* output;
  float* row_scale;  // [rows, heads]
  int rows;
  float epsilon;
};
static_assert(sizeof(Params) == 40, "as plugins/kernels/rms_norm.py lays it out");

__device__ __forceinline__ void store_output(const Params& params, int64 row, int vector,
                                             const Eight& x) {
#if LL_INT8
  const Eight y = mixed(x);
  const float factor = factor_of_row(params.row_scale, row, vector, y);
  if (!in_row(vector)) return;
  *reinterpret_cast<uint2*>(params.output + row * kDim + column(vector)) =
      pack_bytes_int8(y, factor, 0);
#else
  store(params.output + row * (kDim * 2), vector, pack(x));
#endif
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    rms_norm(const __grid_constant__ Params params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  uint4 words[kVectors];
  load_row(words, params.input + static_cast<int64>(row) * (kDim * 2));
  const float inverse = inverse_rms(words, params.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store_output(params, row, i,
                 normalize(words[i], load_shared_vector(params.weight, i), inverse));
  }
}
