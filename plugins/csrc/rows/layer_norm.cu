// The layer normalization of rows of LL_DIM values, modulated or affine.
#define LL_RESIDUAL 0
#define LL_GATE 0
#include "rows/layer_norm.cuh"

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    layer_norm(const __grid_constant__ Params params) {
  sum_and_norm(params);
}
