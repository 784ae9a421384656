// x + gate * y, and the layer normalization that follows, of rows of LL_DIM values.
#define LL_RESIDUAL 1
#ifndef LL_GATE
#define LL_GATE 1
#endif
#include "rows/layer_norm.cuh"

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    residual_norm(const __grid_constant__ Params params) {
  sum_and_norm(params);
}
