// The last convolution's result [pixels, 3] with its bias, from -1 to 1: as 8-bit pixels in the same
// order, or as float32 planes of a color each.
#include "rows.cuh"

namespace {

constexpr int kColors = 3;
constexpr int kPixelsThreads = 256;

struct PixelsParams {
  const uint16* x;
  const uint16* bias;
  uint8* output;
  int64 values;
};

struct FramesParams {
  const uint16* x;
  const uint16* bias;
  float* output;
  int64 pixels;  // of all frames
  int plane;     // pixels of a frame
};

__device__ __forceinline__ float to_float(uint16 half) {
  float low;
  float high;
  unpack_halves(half, low, high);
  return low;
}

// A NaN must not become a picture's plain gray.
__device__ __forceinline__ float clamped(float x) {
  return x < -1.0f ? -1.0f : (x > 1.0f ? 1.0f : x);
}

__device__ __forceinline__ uint32 level(float x) {
  return static_cast<uint32>((clamped(x) / 2 + 0.5f) * 255.0f);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kPixelsThreads)
    vae_pixels(const __grid_constant__ PixelsParams params) {
  const int64 first = (static_cast<int64>(blockIdx.x) * kPixelsThreads + threadIdx.x) * 8;
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

extern "C" __global__ void __launch_bounds__(kPixelsThreads)
    vae_frames(const __grid_constant__ FramesParams params) {
  const int64 pixel = static_cast<int64>(blockIdx.x) * kPixelsThreads + threadIdx.x;
  if (pixel >= params.pixels) return;
  const int64 frame = pixel / params.plane;
  float* target = params.output + frame * (kColors * params.plane) + pixel % params.plane;
#pragma unroll
  for (int color = 0; color < kColors; ++color) {
    const float value = to_float(params.x[pixel * kColors + color]) + to_float(params.bias[color]);
    target[static_cast<int64>(color) * params.plane] = clamped(value);
  }
}
