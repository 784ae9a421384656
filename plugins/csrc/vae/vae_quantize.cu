// The input of a quantized convolution: sum, bias, channel norm and SiLU of every frame, rounded to
// eight bits. The last two frames leave as the next history too, which cannot take the place of the
// old one: the convolution has yet to read that.
//
// LL_NARROW: the type, as in ElementKind. LL_RESIDUAL, LL_BIAS, LL_SUM, LL_SPREAD: as in vae_stack.cu.
#include "vae/activation.cuh"

#ifndef LL_NARROW
#define LL_NARROW 2
#endif

namespace {

struct Params {
  const uint8* x;
  const uint8* y;
  const uint8* bias;
  const uint8* gamma;
  const uint8* history;  // null: nothing came before
  uint8* output;
  uint8* history_next;
  uint8* sum;
  float factor;
  int frames;  // of each row of the batch
  int pixels;
  int width;
  int zero;  // what stands for zero
};
static_assert(sizeof(Params) == 88, "as plugins/kernels/vae_conv.py lays it out");

using NarrowPixel = uint2[kParts];

__device__ __forceinline__ void round_pixel(NarrowPixel& words, const Eight (&value)[kParts],
                                            float factor, int zero) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    words[i] = LL_NARROW == kE4M3 ? pack_bytes_e4m3(value[i], factor)
                                  : pack_bytes_int8(value[i], factor, zero);
  }
}

__device__ __forceinline__ void store_narrow(uint8* pixel, const NarrowPixel& words) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (in_pixel(i)) *reinterpret_cast<uint2*>(pixel + chunk_of(i) * 8) = words[i];
  }
}

// A lone frame moves the one before it up in the history.
__device__ __forceinline__ void move_up(uint8* to, const uint8* from, int zero) {
  const uint32 zeros = 0x01010101u * (zero & 255);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (!in_pixel(i)) continue;
    const int at = chunk_of(i) * 8;
    *reinterpret_cast<uint2*>(to + at) =
        from == nullptr ? make_uint2(zeros, zeros) : *reinterpret_cast<const uint2*>(from + at);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kPixelThreads)
    vae_quantize(const __grid_constant__ Params params) {
  const int pixel = blockIdx.x * kPixelsPerBlock + threadIdx.x / kLanes;
  if (pixel >= params.pixels) return;
  const int64 frame_bytes = static_cast<int64>(params.pixels) * kPixelBytes;
  const int64 within = static_cast<int64>(pixel) * kPixelBytes;
  const int64 start = blockIdx.y * params.frames * frame_bytes + within;
  // Eight bits take half as much.
  const int64 narrow_bytes = frame_bytes / 2;
  const int64 remembered = (blockIdx.y * 2 * frame_bytes + within) / 2;
  if (params.frames == 1) {
    move_up(params.history_next + remembered,
            params.history == nullptr ? nullptr : params.history + remembered + narrow_bytes,
            params.zero);
  }
  Place place{start, frame_bytes};
  if constexpr (LL_SPREAD) {
    place = spread_place(params.frames, params.pixels, params.width, pixel);
  }
  Pixel x;
  Pixel y{};
  load_pixel(x, params.x + place.start);
  if constexpr (LL_RESIDUAL) load_pixel(y, params.y + start);
  for (int frame = 0; frame < params.frames; ++frame) {
    const int64 offset = start + frame * frame_bytes;
    Eight value[kParts];
    add_up(value, x, y, params.bias);
    if (frame + 1 < params.frames) {  // on its way while this frame is computed
      place.start += place.frame_bytes;
      load_pixel(x, params.x + place.start);
      if constexpr (LL_RESIDUAL) load_pixel(y, params.y + offset + frame_bytes);
    }
    if constexpr (LL_SUM) {
      Pixel sum;
      pack_pixel(sum, value);
      store_pixel(params.sum + offset, sum);
    }
    activate(value, params.gamma);
    NarrowPixel narrow;
    round_pixel(narrow, value, params.factor, params.zero);
    store_narrow(params.output + offset / 2, narrow);
    const int kept = frame + 2 - params.frames;
    if (kept >= 0) store_narrow(params.history_next + remembered + kept * narrow_bytes, narrow);
  }
}
