// One warp works on one row of LL_DIM values, eight neighbors to a lane at a time: every load of the
// row is in flight before the first is used, and sums need no shared memory.
#pragma once

#include "common/vectors.cuh"

namespace {

constexpr int kVectors = (kDim + 255) / 256;
constexpr int kRowWarps = 4;
constexpr int kRowBlocks = 5;  // per multiprocessor, at least

__device__ __forceinline__ int column(int vector) { return (vector * 32 + lane_id()) * 8; }
__device__ __forceinline__ bool in_row(int vector) {
  return kDim % 256 == 0 || column(vector) < kDim;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// What many rows share is kept close; the rows themselves pass by once and must not displace it.
__device__ __forceinline__ uint4 load_shared_vector(const void* row, int vector) {
  if (!in_row(vector)) return make_uint4(0, 0, 0, 0);
  uint4 words;
  asm("ld.global.L1::evict_last.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
      : "l"(static_cast<const uint8*>(row) + column(vector) * 2));
  return words;
}

__device__ __forceinline__ void load_row(uint4 (&words)[kVectors], const void* row) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    words[i] = make_uint4(0, 0, 0, 0);
    if (!in_row(i)) continue;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                 : "l"(static_cast<const uint8*>(row) + column(i) * 2)
                 : "memory");
  }
}

__device__ __forceinline__ void store(uint8* row, int vector, const uint4& words) {
  if (in_row(vector)) *reinterpret_cast<uint4*>(row + column(vector) * 2) = words;
}

}  // namespace
