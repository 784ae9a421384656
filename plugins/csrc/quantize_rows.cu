// Between 16-bit and 8-bit numbers, eight neighbors to a thread: all with one factor, or with a scale
// for each head of rows [heads, LL_HEAD_DIM]. LL_FORMAT 2: float8 E4M3; 3: int8.
#include "rows.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif
#ifndef LL_FORMAT
#define LL_FORMAT 2
#endif

namespace {

constexpr int kHeadVectors = LL_HEAD_DIM / 8;

struct RowParams {
  const uint4* input;
  uint2* output;
  int64 vectors;
  float factor;
};

struct HeadParams {
  const void* input;
  void* output;
  const float* scale;  // [heads]
  int64 vectors;
  int heads;
};

__device__ __forceinline__ int64 vector_index() {
  return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ float head_scale(const HeadParams& params, int64 vector) {
  return params.scale[vector / kHeadVectors % params.heads];
}

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
    quantize_rows(const __grid_constant__ RowParams params) {
  const int64 vector = vector_index();
  if (vector >= params.vectors) return;
  params.output[vector] = pack_bytes_e4m3(unpack(params.input[vector]), params.factor);
}

extern "C" __global__ void __launch_bounds__(256)
    narrow_heads(const __grid_constant__ HeadParams params) {
  const int64 vector = vector_index();
  if (vector >= params.vectors) return;
  const Eight x = unpack(static_cast<const uint4*>(params.input)[vector]);
  const float factor = 1.0f / head_scale(params, vector);
  static_cast<uint2*>(params.output)[vector] =
      LL_FORMAT == 3 ? pack_bytes_int8(x, factor) : pack_bytes_e4m3(x, factor);
}

extern "C" __global__ void __launch_bounds__(256)
    widen_heads(const __grid_constant__ HeadParams params) {
  const int64 vector = vector_index();
  if (vector >= params.vectors) return;
  const uint2 bytes = static_cast<const uint2*>(params.input)[vector];
  static_cast<uint4*>(params.output)[vector] = pack(widen(bytes, head_scale(params, vector)));
}
