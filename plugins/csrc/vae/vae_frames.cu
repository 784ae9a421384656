// Pictures as float32 planes of a color each.
#include "vae/pictures.cuh"

namespace {

struct Params {
  const uint16* x;
  const uint16* bias;
  float* output;
  int64 pixels;  // of all frames
  int plane;     // pixels of a frame
};
static_assert(sizeof(Params) == 40, "as plugins/kernels/vae.py lays it out");

}  // namespace

extern "C" __global__ void __launch_bounds__(kPictureThreads)
    vae_frames(const __grid_constant__ Params params) {
  const int64 pixel = static_cast<int64>(blockIdx.x) * kPictureThreads + threadIdx.x;
  if (pixel >= params.pixels) return;
  const int64 frame = pixel / params.plane;
  float* target = params.output + frame * (kColors * params.plane) + pixel % params.plane;
#pragma unroll
  for (int color = 0; color < kColors; ++color) {
    const float value = to_float(params.x[pixel * kColors + color]) + to_float(params.bias[color]);
    target[static_cast<int64>(color) * params.plane] = clamped(value);
  }
}
