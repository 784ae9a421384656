// Rows of heads to eight bits, in units of a scale for each head.
#include "rows/heads.cuh"

extern "C" __global__ void __launch_bounds__(256)
    narrow_heads(const __grid_constant__ Params params) {
  const int64 vector = vector_index();
  if (vector >= params.vectors) return;
  const Eight x = unpack(static_cast<const uint4*>(params.input)[vector]);
  const float factor = 1.0f / head_scale(params, vector);
  static_cast<uint2*>(params.output)[vector] =
      LL_FORMAT == 3 ? pack_bytes_int8(x, factor) : pack_bytes_e4m3(x, factor);
}
