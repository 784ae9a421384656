// Eight neighboring 16-bit values at a time, in float32 while they are worked on. LL_DIM is how many
// follow each other: those of a row, or the channels of a pixel.
#pragma once

#include "common/basics.cuh"

#ifndef LL_ELEMENT
#define LL_ELEMENT 0
#endif
#ifndef LL_DIM
#define LL_DIM 1536
#endif

namespace {

constexpr int kElement = LL_ELEMENT;
constexpr int kDim = LL_DIM;
static_assert(kDim % 8 == 0, "rows are read sixteen bytes at a time");

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// Where every thread has eight values of its own, whatever rows they are in.
__device__ __forceinline__ int64 vector_index() {
  return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ void unpack_halves(uint32 packed, float& low, float& high) {
  if constexpr (kElement == kFloat16) {
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}\n"
        : "=f"(low), "=f"(high)
        : "r"(packed));
  } else {
    low = __uint_as_float(packed << 16);
    high = __uint_as_float(packed & 0xffff0000u);
  }
}

struct Eight {
  float value[8];
};

__device__ __forceinline__ Eight unpack(const uint4& words) {
  Eight eight;
  unpack_halves(words.x, eight.value[0], eight.value[1]);
  unpack_halves(words.y, eight.value[2], eight.value[3]);
  unpack_halves(words.z, eight.value[4], eight.value[5]);
  unpack_halves(words.w, eight.value[6], eight.value[7]);
  return eight;
}

__device__ __forceinline__ float total(const Eight& e) {
  const float* v = e.value;
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

__device__ __forceinline__ uint4 pack(const Eight& e) {
  return make_uint4(pack_halves<kElement>(e.value[0], e.value[1]),
                    pack_halves<kElement>(e.value[2], e.value[3]),
                    pack_halves<kElement>(e.value[4], e.value[5]),
                    pack_halves<kElement>(e.value[6], e.value[7]));
}

__device__ __forceinline__ uint2 pack_bytes_e4m3(const Eight& e, float factor) {
  const float* v = e.value;
  return make_uint2(
      pack_e4m3(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor),
      pack_e4m3(v[4] * factor, v[5] * factor, v[6] * factor, v[7] * factor));
}

// Adding 1.5 x 2^23 rounds to the nearest integer and leaves it in the low bits. `zero` is what stands
// for zero.
__device__ __forceinline__ uint32 pack_int8(float a, float b, float c, float d, float factor,
                                            int zero) {
  constexpr float kBias = 12582912.0f;
  const float shift = kBias + static_cast<float>(zero);
  const auto bits = [factor, shift](float x) {
    const float biased = fmaf(x, factor, shift);
    return __float_as_uint(fminf(fmaxf(biased, kBias - 127.0f), kBias + 127.0f));
  };
  const uint32 low = __byte_perm(bits(a), bits(b), 0x0040);
  const uint32 high = __byte_perm(bits(c), bits(d), 0x0040);
  return __byte_perm(low, high, 0x5410);
}

__device__ __forceinline__ uint2 pack_bytes_int8(const Eight& e, float factor, int zero = 0) {
  const float* v = e.value;
  return make_uint2(pack_int8(v[0], v[1], v[2], v[3], factor, zero),
                    pack_int8(v[4], v[5], v[6], v[7], factor, zero));
}

}  // namespace
