// RMS normalization of rows of LL_DIM values. Float32 inside; the output is rounded once.
#include "rows/rms.cuh"

namespace {

struct Params {
  const uint8* input;
  const uint8* weight;
  uint8* output;
  int rows;
  float epsilon;
};
static_assert(sizeof(Params) == 32, "as plugins/kernels/rms_norm.py lays it out");

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    rms_norm(const __grid_constant__ Params params) {
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
