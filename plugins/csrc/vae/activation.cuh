// What becomes of a pixel before a convolution reads it: the sum of what is pending, the norm over its
// channels, and SiLU or ReLU, each as far as the macros below say.
#pragma once

#include "vae/spread.cuh"

#ifndef LL_RESIDUAL
#define LL_RESIDUAL 1
#define LL_BIAS 1
#define LL_NORM 1
#define LL_SILU 1
#define LL_SUM 1
#define LL_HISTORY 1
#define LL_SPREAD 0
#endif
#ifndef LL_RELU
#define LL_RELU 0
#endif

namespace {

struct Place {
  int64 start;
  int64 frame_bytes;
};

__device__ __forceinline__ Place spread_place(int frames, int pixels, int width, int pixel) {
  const int64 frame_bytes = spread_bytes(pixels / width, width);
  const int within = spread_row(pixel / width, width) + spread_column(pixel % width);
  const int64 before = blockIdx.y * (frames / kFramesOfPlace) * frame_bytes;
  return {before + static_cast<int64>(within) * kPixelBytes, frame_bytes};
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// What is no number stays so.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ void add_up(Eight (&value)[kParts], const Pixel& x, const Pixel& y,
                                       const uint8* bias) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    value[i] = unpack(x[i]);
    if constexpr (LL_RESIDUAL) {
      const Eight other = unpack(y[i]);
#pragma unroll
      for (int j = 0; j < 8; ++j) value[i].value[j] += other.value[j];
    }
    if constexpr (LL_BIAS) {
      const Eight shift = load_channels(bias, i);
#pragma unroll
      for (int j = 0; j < 8; ++j) value[i].value[j] += shift.value[j];
    }
  }
}

__device__ __forceinline__ void normalize(Eight (&value)[kParts], const uint8* gamma) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(value[i].value[j], value[i].value[j], squares);
  }
  const float root = sqrtf(static_cast<float>(kDim));
  const float factor = root * rsqrtf(fmaxf(pixel_sum(squares), 1e-24f));
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const Eight gain = load_channels(gamma, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) value[i].value[j] *= factor * gain.value[j];
  }
}

__device__ __forceinline__ void activate(Eight (&value)[kParts], const uint8* gamma) {
  if constexpr (LL_NORM) normalize(value, gamma);
  if constexpr (LL_SILU) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) value[i].value[j] = silu(value[i].value[j]);
    }
  }
  if constexpr (LL_RELU) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) value[i].value[j] = relu(value[i].value[j]);
    }
  }
}

__device__ __forceinline__ void pack_pixel(Pixel& words, const Eight (&value)[kParts]) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) words[i] = pack(value[i]);
}

}  // namespace
