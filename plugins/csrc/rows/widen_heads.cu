// Rows of heads in eight bits times a scale for each head.
#include "rows/heads.cuh"

namespace {

__device__ __forceinline__ void widen_pair(uint16 bytes, float scale, float& low, float& high) {
  if constexpr (LL_FORMAT == 3) {
    low = static_cast<int8>(bytes & 0xff);
    high = static_cast<int8>(bytes >> 8);
  } else {
    uint32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(bytes));
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}\n"
        : "=f"(low), "=f"(high)
        : "r"(halves));
  }
  low *= scale;
  high *= scale;
}

__device__ __forceinline__ Eight widen(const uint2& bytes, float scale) {
  Eight wide;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const uint32 word = pair < 2 ? bytes.x : bytes.y;
    widen_pair(static_cast<uint16>(word >> (pair % 2 * 16)), scale, wide.value[2 * pair],
               wide.value[2 * pair + 1]);
  }
  return wide;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    widen_heads(const __grid_constant__ Params params) {
  const int64 vector = vector_index();
  if (vector >= params.vectors) return;
  const uint2 bytes = static_cast<const uint2*>(params.input)[vector];
  static_cast<uint4*>(params.output)[vector] = pack(widen(bytes, head_scale(params, vector)));
}
