// The unit of each head of some rows: its largest magnitude, divided by the largest number of eight bits.
// A thread block works on one head.
#include "common/vectors.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kHeadVectors = LL_HEAD_DIM / 8;

struct Params {
  const uint8* input;  // [tokens, heads, head_dim]
  float* output;       // [heads]
  int tokens;
  int heads;
  float factor;
};
static_assert(sizeof(Params) == 32, "as plugins/kernels/quantize.py lays it out");

__device__ __forceinline__ float magnitude(const Eight& x) {
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(x.value[j]));
  return largest;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    head_units(const __grid_constant__ Params params) {
  __shared__ float peaks[kWarps];
  constexpr float kLeast = 1e-12f;  // a head of zeros has a unit, too
  const int head = blockIdx.x;
  float largest = kLeast;
  for (int i = threadIdx.x; i < params.tokens * kHeadVectors; i += kThreads) {
    const int64 row = static_cast<int64>(i / kHeadVectors) * params.heads + head;
    const uint8* place = params.input + (row * kHeadVectors + i % kHeadVectors) * 16;
    largest = fmaxf(largest, magnitude(unpack(*reinterpret_cast<const uint4*>(place))));
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, apart));
  }
  if (lane_id() == 0) peaks[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kWarps; ++warp) largest = fmaxf(largest, peaks[warp]);
  params.output[head] = largest * params.factor;
}
