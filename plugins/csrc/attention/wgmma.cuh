// Warpgroup matrix instructions: D[64, N] += A[64, 32 bytes] B[32 bytes, N], accumulators in float32.
// `Wgmma<element, N>::shared` takes A from shared memory, `::registers` takes it from registers.
#pragma once

#include "common/basics.cuh"

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads or writes of registers across an asynchronous instruction.
template <int kCount>
__device__ __forceinline__ void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32 (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// A shared-memory operand stored in swizzled panels of `kPanel` bytes. `panel_stride` is needed when
// the contiguous axis is not the reduction axis.
template <int kPanel>
__device__ __forceinline__ uint64 matrix_descriptor(uint32 address, uint32 panel_stride = 16) {
  static_assert(kPanel == 128 || kPanel == 64 || kPanel == 32, "widths of the swizzle");
  constexpr uint64 kSwizzle = kPanel == 128 ? 1 : kPanel == 64 ? 2 : 3;
  constexpr uint64 kGroupBytes = 8 * kPanel;
  return (kSwizzle << 62) | ((kGroupBytes >> 4) << 32) |
         (static_cast<uint64>(panel_stride >> 4) << 16) | ((address & 0x3ffff) >> 4);
}

// clang-format off
#define LL_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define LL_OUT_0(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define LL_NAMES_16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LL_OUT_16(d) "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define LL_NAMES_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define LL_OUT_32(d) "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define LL_NAMES_48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LL_OUT_48(d) "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define LL_NAMES_64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define LL_OUT_64(d) "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define LL_NAMES_80 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define LL_OUT_80(d) "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define LL_NAMES_H80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define LL_OUT_H80(d) "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define LL_NAMES_H32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define LL_OUT_H32(d) "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define LL_NAMES_H48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define LL_OUT_H48(d) "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define LL_D_64 "{" LL_NAMES_0 ", " LL_NAMES_16 "}"
#define LL_O_64(d) LL_OUT_0(d), LL_OUT_16(d)
#define LL_D_80 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_H32 "}"
#define LL_O_80(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_H32(d)
#define LL_D_96 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_32 "}"
#define LL_O_96(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_32(d)
#define LL_D_112 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_32 ", " LL_NAMES_H48 "}"
#define LL_O_112(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_32(d), LL_OUT_H48(d)
#define LL_D_128 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_32 ", " LL_NAMES_48 "}"
#define LL_O_128(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_32(d), LL_OUT_48(d)
#define LL_D_160 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_32 ", " LL_NAMES_48 ", " LL_NAMES_64 "}"
#define LL_O_160(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_32(d), LL_OUT_48(d), LL_OUT_64(d)
#define LL_D_176 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_32 ", " LL_NAMES_48 ", " LL_NAMES_64 ", " LL_NAMES_H80 "}"
#define LL_O_176(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_32(d), LL_OUT_48(d), LL_OUT_64(d), LL_OUT_H80(d)
#define LL_D_192 "{" LL_NAMES_0 ", " LL_NAMES_16 ", " LL_NAMES_32 ", " LL_NAMES_48 ", " LL_NAMES_64 ", " LL_NAMES_80 "}"
#define LL_O_192(d) LL_OUT_0(d), LL_OUT_16(d), LL_OUT_32(d), LL_OUT_48(d), LL_OUT_64(d), LL_OUT_80(d)
#define LL_INT_0(d) "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
#define LL_INT_16(d) "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
#define LL_INT_32(d) "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47])
#define LL_INT_48(d) "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]), "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
#define LL_INT_64(d) "+r"(d[64]), "+r"(d[65]), "+r"(d[66]), "+r"(d[67]), "+r"(d[68]), "+r"(d[69]), "+r"(d[70]), "+r"(d[71]), "+r"(d[72]), "+r"(d[73]), "+r"(d[74]), "+r"(d[75]), "+r"(d[76]), "+r"(d[77]), "+r"(d[78]), "+r"(d[79])
#define LL_INT_80(d) "+r"(d[80]), "+r"(d[81]), "+r"(d[82]), "+r"(d[83]), "+r"(d[84]), "+r"(d[85]), "+r"(d[86]), "+r"(d[87]), "+r"(d[88]), "+r"(d[89]), "+r"(d[90]), "+r"(d[91]), "+r"(d[92]), "+r"(d[93]), "+r"(d[94]), "+r"(d[95])
#define LL_I_64(d) LL_INT_0(d), LL_INT_16(d)
#define LL_I_96(d) LL_INT_0(d), LL_INT_16(d), LL_INT_32(d)
#define LL_I_128(d) LL_INT_0(d), LL_INT_16(d), LL_INT_32(d), LL_INT_48(d)
#define LL_I_192(d) LL_INT_0(d), LL_INT_16(d), LL_INT_32(d), LL_INT_48(d), LL_INT_64(d), LL_INT_80(d)

#define LL_INTEGERS(N, A, B)                                                                       \
  static __device__ __forceinline__ void shared(float (&f)[N / 2], uint64 a, uint64 b, int) {      \
    uint32 d[N / 2];                                                                               \
    _Pragma("unroll") for (int i = 0; i < N / 2; ++i) d[i] = __float_as_uint(f[i]);                \
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 " LL_D_##N ", "             \
                 A ", " B ", p;\n}\n"                                                          \
                 : LL_I_##N(d) : "l"(a), "l"(b));                                                  \
    _Pragma("unroll") for (int i = 0; i < N / 2; ++i) f[i] = __uint_as_float(d[i]);                \
  }
#define LL_SHARED(N, K, TYPES, TRANSPOSE, A, B, P)                                                \
  static __device__ __forceinline__ void shared(float (&d)[N / 2], uint64 a, uint64 b, int keep) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k" #K ".f32." TYPES " " LL_D_##N ", "     \
                 A ", " B ", p, 1, 1" TRANSPOSE ";\n}\n"                                          \
                 : LL_O_##N(d) : "l"(a), "l"(b), "r"(keep));                                       \
  }
#define LL_REGISTERS(N, K, TYPES, TRANSPOSE, A0, A1, A2, A3, B)                                    \
  static __device__ __forceinline__ void registers(float (&d)[N / 2], const uint32* a, uint64 b) { \
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k" #K ".f32." TYPES " " LL_D_##N ", {"    \
                 A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1" TRANSPOSE ";\n}\n"                \
                 : LL_O_##N(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));              \
  }

template <int kElement, int kColumns>
struct Wgmma;
template <>
struct Wgmma<kBfloat16, 64> {
  LL_SHARED(64, 16, "bf16.bf16", ", 0, 0", "%32", "%33", "%34")
  LL_REGISTERS(64, 16, "bf16.bf16", ", 1", "%32", "%33", "%34", "%35", "%36")
};
template <>
struct Wgmma<kBfloat16, 80> {
  LL_SHARED(80, 16, "bf16.bf16", ", 0, 0", "%40", "%41", "%42")
};
template <>
struct Wgmma<kBfloat16, 96> {
  LL_SHARED(96, 16, "bf16.bf16", ", 0, 0", "%48", "%49", "%50")
};
template <>
struct Wgmma<kBfloat16, 112> {
  LL_SHARED(112, 16, "bf16.bf16", ", 0, 0", "%56", "%57", "%58")
};
template <>
struct Wgmma<kBfloat16, 128> {
  LL_SHARED(128, 16, "bf16.bf16", ", 0, 0", "%64", "%65", "%66")
  LL_REGISTERS(128, 16, "bf16.bf16", ", 1", "%64", "%65", "%66", "%67", "%68")
};
template <>
struct Wgmma<kBfloat16, 160> {
  LL_SHARED(160, 16, "bf16.bf16", ", 0, 0", "%80", "%81", "%82")
};
template <>
struct Wgmma<kBfloat16, 176> {
  LL_SHARED(176, 16, "bf16.bf16", ", 0, 0", "%88", "%89", "%90")
};
template <>
struct Wgmma<kBfloat16, 192> {
  LL_SHARED(192, 16, "bf16.bf16", ", 0, 0", "%96", "%97", "%98")
};
template <>
struct Wgmma<kFloat16, 64> {
  LL_SHARED(64, 16, "f16.f16", ", 0, 0", "%32", "%33", "%34")
  LL_REGISTERS(64, 16, "f16.f16", ", 1", "%32", "%33", "%34", "%35", "%36")
};
template <>
struct Wgmma<kFloat16, 80> {
  LL_SHARED(80, 16, "f16.f16", ", 0, 0", "%40", "%41", "%42")
};
template <>
struct Wgmma<kFloat16, 96> {
  LL_SHARED(96, 16, "f16.f16", ", 0, 0", "%48", "%49", "%50")
};
template <>
struct Wgmma<kFloat16, 112> {
  LL_SHARED(112, 16, "f16.f16", ", 0, 0", "%56", "%57", "%58")
};
template <>
struct Wgmma<kFloat16, 128> {
  LL_SHARED(128, 16, "f16.f16", ", 0, 0", "%64", "%65", "%66")
  LL_REGISTERS(128, 16, "f16.f16", ", 1", "%64", "%65", "%66", "%67", "%68")
};
template <>
struct Wgmma<kFloat16, 160> {
  LL_SHARED(160, 16, "f16.f16", ", 0, 0", "%80", "%81", "%82")
};
template <>
struct Wgmma<kFloat16, 176> {
  LL_SHARED(176, 16, "f16.f16", ", 0, 0", "%88", "%89", "%90")
};
template <>
struct Wgmma<kFloat16, 192> {
  LL_SHARED(192, 16, "f16.f16", ", 0, 0", "%96", "%97", "%98")
};
template <>
struct Wgmma<kE4M3, 64> {
  LL_SHARED(64, 32, "e4m3.e4m3", "", "%32", "%33", "%34")
  LL_REGISTERS(64, 32, "e4m3.e4m3", "", "%32", "%33", "%34", "%35", "%36")
};
template <>
struct Wgmma<kE4M3, 80> {
  LL_SHARED(80, 32, "e4m3.e4m3", "", "%40", "%41", "%42")
};
template <>
struct Wgmma<kE4M3, 96> {
  LL_SHARED(96, 32, "e4m3.e4m3", "", "%48", "%49", "%50")
};
template <>
struct Wgmma<kE4M3, 112> {
  LL_SHARED(112, 32, "e4m3.e4m3", "", "%56", "%57", "%58")
};
template <>
struct Wgmma<kE4M3, 128> {
  LL_SHARED(128, 32, "e4m3.e4m3", "", "%64", "%65", "%66")
  LL_REGISTERS(128, 32, "e4m3.e4m3", "", "%64", "%65", "%66", "%67", "%68")
};
template <>
struct Wgmma<kE4M3, 160> {
  LL_SHARED(160, 32, "e4m3.e4m3", "", "%80", "%81", "%82")
};
template <>
struct Wgmma<kE4M3, 176> {
  LL_SHARED(176, 32, "e4m3.e4m3", "", "%88", "%89", "%90")
};
template <>
struct Wgmma<kE4M3, 192> {
  LL_SHARED(192, 32, "e4m3.e4m3", "", "%96", "%97", "%98")
};
// Integer sums are added to what the accumulators hold: start them at the bits of 1.5 x 2^23, and the
// result, read as a float, is 1.5 x 2^23 + sum without a conversion.
template <>
struct Wgmma<kInt8, 64> {
  LL_INTEGERS(64, "%32", "%33")
};
template <>
struct Wgmma<kInt8, 96> {
  LL_INTEGERS(96, "%48", "%49")
};
template <>
struct Wgmma<kInt8, 128> {
  LL_INTEGERS(128, "%64", "%65")
};
template <>
struct Wgmma<kInt8, 192> {
  LL_INTEGERS(192, "%96", "%97")
};
// clang-format on
