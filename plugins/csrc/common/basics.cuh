// Types and small device helpers that every kernel shares. No header outside this folder is needed,
// so that nvcc and NVRTC compile the same text.
#pragma once

using int8 = signed char;
using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

enum ElementKind { kBfloat16 = 0, kFloat16 = 1, kE4M3 = 2, kInt8 = 3 };

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }

template <typename T>
__device__ __forceinline__ constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
__device__ __forceinline__ constexpr T larger(T a, T b) {
  return a > b ? a : b;
}

__device__ __forceinline__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ uint32 shared_address(const void* pointer) {
  return static_cast<uint32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The first argument ends up in the low half.
template <int kElement>
__device__ __forceinline__ uint32 pack_halves(float low, float high) {
  uint32 packed;
  if constexpr (kElement == kFloat16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

__device__ __forceinline__ uint32 pack_e4m3(float b0, float b1, float b2, float b3) {
  uint32 packed;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(packed)
      : "f"(b0), "f"(b1), "f"(b2), "f"(b3));
  return packed;
}

// Lanes 4r .. 4r+3 hold one row of an accumulator tile.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
