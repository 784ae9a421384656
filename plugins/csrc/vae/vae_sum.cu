// Adds what is pending, x + y + bias, for a convolution that pads with zeros right after it.
//
// LL_INTERLEAVE 1: the first half of the LL_DIM channels is a frame, the second half the next one.
#include "vae/pixel.cuh"

#ifndef LL_RESIDUAL
#define LL_RESIDUAL 1
#define LL_BIAS 1
#define LL_INTERLEAVE 0
#endif

namespace {

constexpr int kSumThreads = 256;
constexpr int kChunksOut = LL_INTERLEAVE ? kChunks / 2 : kChunks;
static_assert(!LL_INTERLEAVE || kChunks % 2 == 0, "each half is read sixteen bytes at a time");

struct Params {
  const uint8* x;
  const uint8* y;
  const uint8* bias;
  uint8* output;
  int64 vectors;
  int64 pixels;  // of one frame
};
static_assert(sizeof(Params) == 48, "as plugins/kernels/vae.py lays it out");

__device__ __forceinline__ uint4 value_at(const Params& params, int64 vector, int chunk) {
  const uint4 x = load_passing(params.x + vector * 16);
  if constexpr (!LL_RESIDUAL && !LL_BIAS) return x;
  Eight value = unpack(x);
  if constexpr (LL_RESIDUAL) {
    const Eight other = unpack(load_passing(params.y + vector * 16));
#pragma unroll
    for (int j = 0; j < 8; ++j) value.value[j] += other.value[j];
  }
  if constexpr (LL_BIAS) {
    const Eight shift = unpack(*reinterpret_cast<const uint4*>(params.bias + chunk * 16));
#pragma unroll
    for (int j = 0; j < 8; ++j) value.value[j] += shift.value[j];
  }
  return pack(value);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kSumThreads)
    vae_sum(const __grid_constant__ Params params) {
  const int64 vector = static_cast<int64>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (vector >= params.vectors) return;
  const int64 pixel = vector / kChunks;
  const int chunk = static_cast<int>(vector % kChunks);
  int64 place = pixel;
  if constexpr (LL_INTERLEAVE) {
    const int64 later = chunk >= kChunksOut;
    place += (pixel / params.pixels + later) * params.pixels;
  }
  uint4* target = reinterpret_cast<uint4*>(params.output) + place * kChunksOut;
  target[chunk % kChunksOut] = value_at(params, vector, chunk);
}
