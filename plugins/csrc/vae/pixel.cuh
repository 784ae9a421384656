// A few lanes work on one pixel of LL_DIM channels, at most three times eight channels a lane, so
// that the sum over channels is a few shuffles and neighboring pixels share a warp's accesses.
#pragma once

#include "common/vectors.cuh"

namespace {

constexpr int kChunks = kDim / 8;
constexpr int kPixelThreads = 128;

__device__ constexpr int lanes_of_a_pixel() {
  int lanes = 1;
  while (lanes < 32 && ceil_div(kChunks, lanes) > 3) lanes *= 2;
  return lanes;
}

constexpr int kLanes = lanes_of_a_pixel();
constexpr int kParts = (kChunks + kLanes - 1) / kLanes;
constexpr int kPixelsPerBlock = kPixelThreads / kLanes;
constexpr int kPixelBytes = kDim * 2;

using Pixel = uint4[kParts];

__device__ __forceinline__ int chunk_of(int part) { return part * kLanes + lane_id() % kLanes; }
__device__ __forceinline__ bool in_pixel(int part) {
  return kChunks % kLanes == 0 || chunk_of(part) < kChunks;
}

// Each input passes by once.
__device__ __forceinline__ uint4 load_passing(const uint8* address) {
  uint4 words;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(address)
               : "memory");
  return words;
}

__device__ __forceinline__ void load_pixel(Pixel& words, const uint8* pixel) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    words[i] = in_pixel(i) ? load_passing(pixel + chunk_of(i) * 16) : make_uint4(0, 0, 0, 0);
  }
}

__device__ __forceinline__ void store_pixel(uint8* pixel, const Pixel& words) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (in_pixel(i)) *reinterpret_cast<uint4*>(pixel + chunk_of(i) * 16) = words[i];
  }
}

// What all pixels share stays close.
__device__ __forceinline__ Eight load_channels(const uint8* vector, int part) {
  if (!in_pixel(part)) return Eight{};
  uint4 words;
  asm("ld.global.L1::evict_last.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
      : "l"(vector + chunk_of(part) * 16));
  return unpack(words);
}

__device__ __forceinline__ float pixel_sum(float x) {
  constexpr uint32 kGroup = kLanes == 32 ? 0xffffffffu : (1u << kLanes) - 1;
  const uint32 group = kGroup << (lane_id() / kLanes * kLanes);
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(group, x, offset);
  return x;
}

}  // namespace
