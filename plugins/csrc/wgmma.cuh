// Warpgroup matrix instructions: D[64, N] += A[64, 32 bytes] B[32 bytes, N], accumulators in float32.
// `Wgmma<element, N>::shared` takes A from shared memory, `::registers` takes it from registers.
#pragma once

#include "common.cuh"

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
#define LL_INT_0(d) "+r"(reinterpret_cast<uint32&>(d[0])), "+r"(reinterpret_cast<uint32&>(d[1])), "+r"(reinterpret_cast<uint32&>(d[2])), "+r"(reinterpret_cast<uint32&>(d[3])), "+r"(reinterpret_cast<uint32&>(d[4])), "+r"(reinterpret_cast<uint32&>(d[5])), "+r"(reinterpret_cast<uint32&>(d[6])), "+r"(reinterpret_cast<uint32&>(d[7])), "+r"(reinterpret_cast<uint32&>(d[8])), "+r"(reinterpret_cast<uint32&>(d[9])), "+r"(reinterpret_cast<uint32&>(d[10])), "+r"(reinterpret_cast<uint32&>(d[11])), "+r"(reinterpret_cast<uint32&>(d[12])), "+r"(reinterpret_cast<uint32&>(d[13])), "+r"(reinterpret_cast<uint32&>(d[14])), "+r"(reinterpret_cast<uint32&>(d[15]))
#define LL_INT_16(d) "+r"(reinterpret_cast<uint32&>(d[16])), "+r"(reinterpret_cast<uint32&>(d[17])), "+r"(reinterpret_cast<uint32&>(d[18])), "+r"(reinterpret_cast<uint32&>(d[19])), "+r"(reinterpret_cast<uint32&>(d[20])), "+r"(reinterpret_cast<uint32&>(d[21])), "+r"(reinterpret_cast<uint32&>(d[22])), "+r"(reinterpret_cast<uint32&>(d[23])), "+r"(reinterpret_cast<uint32&>(d[24])), "+r"(reinterpret_cast<uint32&>(d[25])), "+r"(reinterpret_cast<uint32&>(d[26])), "+r"(reinterpret_cast<uint32&>(d[27])), "+r"(reinterpret_cast<uint32&>(d[28])), "+r"(reinterpret_cast<uint32&>(d[29])), "+r"(reinterpret_cast<uint32&>(d[30])), "+r"(reinterpret_cast<uint32&>(d[31]))
#define LL_INT_32(d) "+r"(reinterpret_cast<uint32&>(d[32])), "+r"(reinterpret_cast<uint32&>(d[33])), "+r"(reinterpret_cast<uint32&>(d[34])), "+r"(reinterpret_cast<uint32&>(d[35])), "+r"(reinterpret_cast<uint32&>(d[36])), "+r"(reinterpret_cast<uint32&>(d[37])), "+r"(reinterpret_cast<uint32&>(d[38])), "+r"(reinterpret_cast<uint32&>(d[39])), "+r"(reinterpret_cast<uint32&>(d[40])), "+r"(reinterpret_cast<uint32&>(d[41])), "+r"(reinterpret_cast<uint32&>(d[42])), "+r"(reinterpret_cast<uint32&>(d[43])), "+r"(reinterpret_cast<uint32&>(d[44])), "+r"(reinterpret_cast<uint32&>(d[45])), "+r"(reinterpret_cast<uint32&>(d[46])), "+r"(reinterpret_cast<uint32&>(d[47]))
#define LL_INT_48(d) "+r"(reinterpret_cast<uint32&>(d[48])), "+r"(reinterpret_cast<uint32&>(d[49])), "+r"(reinterpret_cast<uint32&>(d[50])), "+r"(reinterpret_cast<uint32&>(d[51])), "+r"(reinterpret_cast<uint32&>(d[52])), "+r"(reinterpret_cast<uint32&>(d[53])), "+r"(reinterpret_cast<uint32&>(d[54])), "+r"(reinterpret_cast<uint32&>(d[55])), "+r"(reinterpret_cast<uint32&>(d[56])), "+r"(reinterpret_cast<uint32&>(d[57])), "+r"(reinterpret_cast<uint32&>(d[58])), "+r"(reinterpret_cast<uint32&>(d[59])), "+r"(reinterpret_cast<uint32&>(d[60])), "+r"(reinterpret_cast<uint32&>(d[61])), "+r"(reinterpret_cast<uint32&>(d[62])), "+r"(reinterpret_cast<uint32&>(d[63]))
#define LL_INT_64(d) "+r"(reinterpret_cast<uint32&>(d[64])), "+r"(reinterpret_cast<uint32&>(d[65])), "+r"(reinterpret_cast<uint32&>(d[66])), "+r"(reinterpret_cast<uint32&>(d[67])), "+r"(reinterpret_cast<uint32&>(d[68])), "+r"(reinterpret_cast<uint32&>(d[69])), "+r"(reinterpret_cast<uint32&>(d[70])), "+r"(reinterpret_cast<uint32&>(d[71])), "+r"(reinterpret_cast<uint32&>(d[72])), "+r"(reinterpret_cast<uint32&>(d[73])), "+r"(reinterpret_cast<uint32&>(d[74])), "+r"(reinterpret_cast<uint32&>(d[75])), "+r"(reinterpret_cast<uint32&>(d[76])), "+r"(reinterpret_cast<uint32&>(d[77])), "+r"(reinterpret_cast<uint32&>(d[78])), "+r"(reinterpret_cast<uint32&>(d[79]))
#define LL_INT_80(d) "+r"(reinterpret_cast<uint32&>(d[80])), "+r"(reinterpret_cast<uint32&>(d[81])), "+r"(reinterpret_cast<uint32&>(d[82])), "+r"(reinterpret_cast<uint32&>(d[83])), "+r"(reinterpret_cast<uint32&>(d[84])), "+r"(reinterpret_cast<uint32&>(d[85])), "+r"(reinterpret_cast<uint32&>(d[86])), "+r"(reinterpret_cast<uint32&>(d[87])), "+r"(reinterpret_cast<uint32&>(d[88])), "+r"(reinterpret_cast<uint32&>(d[89])), "+r"(reinterpret_cast<uint32&>(d[90])), "+r"(reinterpret_cast<uint32&>(d[91])), "+r"(reinterpret_cast<uint32&>(d[92])), "+r"(reinterpret_cast<uint32&>(d[93])), "+r"(reinterpret_cast<uint32&>(d[94])), "+r"(reinterpret_cast<uint32&>(d[95]))
#define LL_I_64(d) LL_INT_0(d), LL_INT_16(d)
#define LL_I_96(d) LL_INT_0(d), LL_INT_16(d), LL_INT_32(d)
#define LL_I_128(d) LL_INT_0(d), LL_INT_16(d), LL_INT_32(d), LL_INT_48(d)
#define LL_I_192(d) LL_INT_0(d), LL_INT_16(d), LL_INT_32(d), LL_INT_48(d), LL_INT_64(d), LL_INT_80(d)

#define LL_INTEGERS(N, A, B)                                                                       \
  static __device__ __forceinline__ void shared(float (&d)[N / 2], uint64 a, uint64 b, int) {      \
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 " LL_D_##N ", "             \
                 A ", " B ", p;\n}\n"                                                          \
                 : LL_I_##N(d) : "l"(a), "l"(b));                                                  \
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
