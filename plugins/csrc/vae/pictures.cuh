// Colors of pictures: the last convolution's result and its bias, from black to 1.
#pragma once

#include "common/vectors.cuh"

namespace {

constexpr int kColors = 3;
constexpr int kPictureThreads = 256;

__device__ __forceinline__ float to_float(uint16 half) {
  float low;
  float high;
  unpack_halves(half, low, high);
  return low;
}

// A NaN must not become a picture's plain gray.
__device__ __forceinline__ float clamped(float x, float black = -1.0f) {
  return x < black ? black : (x > 1.0f ? 1.0f : x);
}

}  // namespace
