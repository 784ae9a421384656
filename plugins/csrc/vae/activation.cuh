// What becomes of a pixel before a convolution reads it: the sum of what is pending, the norm over its
// channels, and SiLU, each as far as the macros below say.
#pragma once

#include "vae/pixel.cuh"

#ifndef LL_RESIDUAL
#define LL_RESIDUAL 1
#define LL_BIAS 1
#define LL_NORM 1
#define LL_SILU 1
#define LL_SUM 1
#define LL_HISTORY 1
#define LL_SPREAD 0
#endif

namespace {

struct Place {
  int64 start;
  int64 frame_bytes;
};

__device__ __forceinline__ Place spread_place(int frames, int pixels, int width, int pixel) {
  const int row = pixel / width;
  const int column = pixel % width;
  const int places_wide = width / 2 + 1;
  const int places_high = pixels / width / 2 + 1;
  const int place = (row + 1) / 2 * places_wide + (column + 1) / 2;
  const int which = row % 2 * 2 + column % 2;
  const int64 frame_bytes = static_cast<int64>(places_high) * places_wide * 4 * kPixelBytes;
  const int64 within = (static_cast<int64>(place) * 4 + which) * kPixelBytes;
  return {blockIdx.y * frames * frame_bytes + within, frame_bytes};
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

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
}

__device__ __forceinline__ void pack_pixel(Pixel& words, const Eight (&value)[kParts]) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) words[i] = pack(value[i]);
}

}  // namespace
