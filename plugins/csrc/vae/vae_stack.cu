// The input of a causal convolution of LL_TAPS taps: sum, bias, channel norm and SiLU or ReLU of every
// frame, computed once, and the LL_TAPS - 1 frames before the first.
//
// LL_FORM 0: the frames alone. 1: each beside those before it, [frame - 2 | frame - 1 | frame] along
// the channels. 2: one after the other, behind the history. In forms 1 and 2 the last ones leave as the
// next history, which may take the place of the old one.
// LL_RESIDUAL, LL_BIAS, LL_NORM, LL_SILU, LL_RELU, LL_SUM: which of x + y, + bias, norm, SiLU, ReLU, and
// the sum as an output of its own there are. LL_HISTORY 0: zeros before the first frame.
// LL_SPREAD 1: x is spread, as a convolution leaves it that doubles height and width (spread.cuh).
// LL_BESIDE 1: y is the last of LL_TAPS frames that lie beside each other.
#include "vae/activation.cuh"

#ifndef LL_FORM
#define LL_FORM 1
#endif
#ifndef LL_TAPS
#define LL_TAPS 3
#endif
#ifndef LL_BESIDE
#define LL_BESIDE 0
#endif

namespace {

enum Form { kAlone = 0, kStacked = 1, kExtended = 2 };

constexpr int kBefore = LL_TAPS - 1;
constexpr int kPitchOfY = LL_BESIDE ? LL_TAPS : 1;

struct Params {
  const uint8* x;
  const uint8* y;
  const uint8* bias;
  const uint8* gamma;
  const uint8* history;
  uint8* output;
  uint8* history_next;
  uint8* sum;
  int frames;  // of each row of the batch
  int pixels;
  int width;
};
static_assert(sizeof(Params) == 80, "as plugins/kernels/vae.py lays it out");

__device__ __forceinline__ void copy(Pixel& to, const Pixel& from) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) to[i] = from[i];
}

__device__ __forceinline__ const uint8* place_of_y(const Params& params, int64 offset) {
  return params.y + offset * kPitchOfY + (LL_BESIDE ? kBefore * kPixelBytes : 0);
}

}  // namespace

// Finding a spread pixel takes a few registers, which would cost a fifth of the threads at work.
#if LL_SPREAD && !LL_RESIDUAL
#define LL_BOUNDS __launch_bounds__(kPixelThreads, 5)
#else
#define LL_BOUNDS __launch_bounds__(kPixelThreads)
#endif

extern "C" __global__ void LL_BOUNDS
    vae_stack(const __grid_constant__ Params params) {
  const int pixel = blockIdx.x * kPixelsPerBlock + threadIdx.x / kLanes;
  if (pixel >= params.pixels) return;
  const int64 frame_bytes = static_cast<int64>(params.pixels) * kPixelBytes;
  const int64 within = static_cast<int64>(pixel) * kPixelBytes;
  const int64 start = blockIdx.y * params.frames * frame_bytes + within;
  const int64 remembered = blockIdx.y * kBefore * frame_bytes + within;

  Pixel before[kBefore]{};
  if constexpr (LL_FORM != kAlone && LL_HISTORY) {
#pragma unroll
    for (int i = 0; i < kBefore; ++i) {
      load_pixel(before[i], params.history + remembered + i * frame_bytes);
    }
  }
  uint8* target = params.output + start * (LL_FORM == kStacked ? LL_TAPS : 1);
  if constexpr (LL_FORM == kExtended) {
    target += blockIdx.y * kBefore * frame_bytes;
#pragma unroll
    for (int i = 0; i < kBefore; ++i) store_pixel(target + i * frame_bytes, before[i]);
    target += kBefore * frame_bytes;
  }
  Place spread{};
  if constexpr (LL_SPREAD) {
    spread = spread_place(params.frames, params.pixels, params.width, pixel);
  }
  Pixel x;
  Pixel y{};
  load_pixel(x, params.x + (LL_SPREAD ? spread.start : start));
  if constexpr (LL_RESIDUAL) load_pixel(y, place_of_y(params, start));
  for (int frame = 0; frame < params.frames; ++frame) {
    const int64 offset = start + frame * frame_bytes;
    Eight value[kParts];
    add_up(value, x, y, params.bias);
    if (frame + 1 < params.frames) {  // on its way while this frame is computed
      if constexpr (LL_SPREAD) {
        spread.start += spread_step(frame, spread.frame_bytes);
        load_pixel(x, params.x + spread.start);
      } else {
        load_pixel(x, params.x + offset + frame_bytes);
      }
      if constexpr (LL_RESIDUAL) load_pixel(y, place_of_y(params, offset + frame_bytes));
    }
    Pixel present;
    if constexpr (LL_SUM) {
      pack_pixel(present, value);
      store_pixel(params.sum + offset, present);
    }
    activate(value, params.gamma);
    pack_pixel(present, value);
    if constexpr (LL_FORM == kStacked) {
#pragma unroll
      for (int i = 0; i < kBefore; ++i) store_pixel(target + i * kPixelBytes, before[i]);
      store_pixel(target + kBefore * kPixelBytes, present);
      target += LL_TAPS * frame_bytes;
    } else {
      store_pixel(target, present);
      target += frame_bytes;
    }
#pragma unroll
    for (int i = 0; i + 1 < kBefore; ++i) copy(before[i], before[i + 1]);
    copy(before[kBefore - 1], present);
  }
  if constexpr (LL_FORM != kAlone) {
#pragma unroll
    for (int i = 0; i < kBefore; ++i) {
      store_pixel(params.history_next + remembered + i * frame_bytes, before[i]);
    }
  }
}
