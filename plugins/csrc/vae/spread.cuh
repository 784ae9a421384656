// Where pixels lie in what a convolution leaves that doubles height and width at once: four of them at
// each place of [height / 2 + 1, width / 2 + 1], side by side in the channels, and behind them those of
// the next frame, if a place holds LL_FRAMES_OF_PLACE of them.
#pragma once

#include "vae/pixel.cuh"

#ifndef LL_FRAMES_OF_PLACE
#define LL_FRAMES_OF_PLACE 1
#endif

namespace {

constexpr int kFramesOfPlace = LL_FRAMES_OF_PLACE;
constexpr int kPixelsOfPlace = 4 * kFramesOfPlace;

// A pixel's place in a frame, counted in pixels, is the sum of its row's and its column's. Eight columns
// on, from -1 too, it is as many places further.
__device__ __forceinline__ int spread_row(int row, int width) {
  return (row + 1) / 2 * (width / 2 + 1) * kPixelsOfPlace + row % 2 * 2;
}
__device__ __forceinline__ int spread_column(int column) {
  return (column + 1) / 2 * kPixelsOfPlace + (column & 1);
}

// Of the frames that lie together.
__device__ __forceinline__ int64 spread_bytes(int height, int width) {
  return static_cast<int64>(height / 2 + 1) * (width / 2 + 1) * (kPixelsOfPlace * kPixelBytes);
}

// From a frame to the next, in bytes.
__device__ __forceinline__ int64 spread_step(int frame, int64 bytes) {
  constexpr int kFrameOfPlaceBytes = 4 * kPixelBytes;
  const bool is_last = (frame + 1) % kFramesOfPlace == 0;
  return is_last ? bytes - (kFramesOfPlace - 1) * kFrameOfPlaceBytes : kFrameOfPlaceBytes;
}

}  // namespace
