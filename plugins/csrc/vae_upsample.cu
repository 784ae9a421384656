// Doubles height and width by repetition, after adding what is pending: x + y + bias.
//
// LL_INTERLEAVE 1: the first half of the LL_DIM channels is a frame, the second half the next one.
#include "vae_pixel.cuh"

#ifndef LL_RESIDUAL
#define LL_RESIDUAL 1
#define LL_BIAS 1
#define LL_INTERLEAVE 0
#endif

namespace {

constexpr int kUpsampleThreads = 256;
constexpr int kChunksOut = LL_INTERLEAVE ? kChunks / 2 : kChunks;
static_assert(!LL_INTERLEAVE || kChunks % 2 == 0, "each half is read sixteen bytes at a time");

struct UpsampleParams {
  const uint8* x;
  const uint8* y;
  const uint8* bias;
  uint8* output;
  int height;
  int width;
};

__device__ __forceinline__ uint4 value_at(const UpsampleParams& params, int64 vector, int chunk) {
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

// One block for a part of a row of pixels: blockIdx.x counts rows over all frames.
extern "C" __global__ void __launch_bounds__(kUpsampleThreads)
    vae_upsample(const __grid_constant__ UpsampleParams params) {
  const int within = blockIdx.y * kUpsampleThreads + threadIdx.x;
  const int row_vectors = params.width * kChunks;
  if (within >= row_vectors) return;
  const int column = within / kChunks;
  const int chunk = within % kChunks;
  const int64 row = blockIdx.x;
  const uint4 value = value_at(params, row * row_vectors + within, chunk);
  int64 row_out = 2 * row;
  if constexpr (LL_INTERLEAVE) {
    const int64 later = chunk >= kChunksOut;
    row_out += 2 * params.height * (row / params.height + later);
  }
  const int64 pitch = 2ll * params.width * kChunksOut;
  uint4* target = reinterpret_cast<uint4*>(params.output) + row_out * pitch +
                  2 * column * kChunksOut + chunk % kChunksOut;
  target[0] = value;
  target[kChunksOut] = value;
  target[pitch] = value;
  target[pitch + kChunksOut] = value;
}
