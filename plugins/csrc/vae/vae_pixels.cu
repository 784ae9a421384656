// Pictures as 8-bit pixels, in the order of the values.
#include "vae/pictures.cuh"

namespace {

struct Params {
  const uint16* x;
  const uint16* bias;
  uint8* output;
  int64 values;
};
static_assert(sizeof(Params) == 32, "as plugins/kernels/vae.py lays it out");

__device__ __forceinline__ uint32 level(float x) {
  return static_cast<uint32>((clamped(x) / 2 + 0.5f) * 255.0f);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kPictureThreads)
    vae_pixels(const __grid_constant__ Params params) {
  const int64 first = (static_cast<int64>(blockIdx.x) * kPictureThreads + threadIdx.x) * 8;
  const float bias[kColors] = {to_float(params.bias[0]), to_float(params.bias[1]),
                               to_float(params.bias[2])};
  const int color = static_cast<int>(first % kColors);
  const auto shift = [&](int j) {
    const int k = (color + j) % kColors;
    return k == 0 ? bias[0] : (k == 1 ? bias[1] : bias[2]);
  };
  if (first + 8 > params.values) {
    for (int j = 0; first + j < params.values; ++j) {
      params.output[first + j] = level(to_float(params.x[first + j]) + shift(j));
    }
    return;
  }
  const Eight x = unpack(*reinterpret_cast<const uint4*>(params.x + first));
  uint32 words[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < 8; ++j) words[j / 4] |= level(x.value[j] + shift(j)) << (j % 4 * 8);
  *reinterpret_cast<uint2*>(params.output + first) = make_uint2(words[0], words[1]);
}
