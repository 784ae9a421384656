// Rotary embedding of rows of heads. Float32 inside; the output is rounded once.
#include "rows/rope.cuh"

namespace {

struct Params {
  const uint8* input;
  const float* cosine;
  const float* sine;
  uint8* output;
  int rows;
  int tokens;
};
static_assert(sizeof(Params) == 40, "as plugins/kernels/rows.py lays it out");

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    rotate(const __grid_constant__ Params params) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  uint4 words[kVectors];
  load_row(words, params.input + offset);
  const Angles angles(params.cosine, params.sine, row % params.tokens);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store(params.output + offset, i, pack(rotated(unpack(words[i]), angles.cosine, angles.sine)));
  }
}
