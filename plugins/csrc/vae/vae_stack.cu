// The input of a causal convolution: sum, bias, channel norm and SiLU of every frame, computed once,
// and the two frames before the first.
//
// LL_FORM 0: the frames alone. 1: each beside the two before it, [frame - 2 | frame - 1 | frame] along
// the channels. 2: one after the other, behind the history. In forms 1 and 2 the last two leave as the
// next history, which may take the place of the old one.
// LL_RESIDUAL, LL_BIAS, LL_NORM, LL_SILU, LL_SUM: which of x + y, + bias, norm, SiLU, and the sum
// as an output of its own there are. LL_HISTORY 0: zeros before the first frame.
// LL_SPREAD 1: x is spread, as a convolution leaves it that doubles height and width: a pixel is one
// of four at a place of [height / 2 + 1, width / 2 + 1], side by side in the channels.
#include "vae/activation.cuh"

#ifndef LL_FORM
#define LL_FORM 1
#endif

namespace {

enum Form { kAlone = 0, kStacked = 1, kExtended = 2 };

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
  const int64 remembered = blockIdx.y * 2 * frame_bytes + within;

  Pixel before_last{};
  Pixel last{};
  if constexpr (LL_FORM != kAlone && LL_HISTORY) {
    load_pixel(before_last, params.history + remembered);
    load_pixel(last, params.history + remembered + frame_bytes);
  }
  uint8* target = params.output + start * (LL_FORM == kStacked ? 3 : 1);
  if constexpr (LL_FORM == kExtended) {
    target += blockIdx.y * 2 * frame_bytes;
    store_pixel(target, before_last);
    store_pixel(target + frame_bytes, last);
    target += 2 * frame_bytes;
  }
  Place spread{};
  if constexpr (LL_SPREAD) {
    spread = spread_place(params.frames, params.pixels, params.width, pixel);
  }
  Pixel x;
  Pixel y{};
  load_pixel(x, params.x + (LL_SPREAD ? spread.start : start));
  if constexpr (LL_RESIDUAL) load_pixel(y, params.y + start);
  for (int frame = 0; frame < params.frames; ++frame) {
    const int64 offset = start + frame * frame_bytes;
    Eight value[kParts];
    add_up(value, x, y, params.bias);
    if (frame + 1 < params.frames) {  // on its way while this frame is computed
      if constexpr (LL_SPREAD) {
        spread.start += spread.frame_bytes;
        load_pixel(x, params.x + spread.start);
      } else {
        load_pixel(x, params.x + offset + frame_bytes);
      }
      if constexpr (LL_RESIDUAL) load_pixel(y, params.y + offset + frame_bytes);
    }
    Pixel present;
    if constexpr (LL_SUM) {
      pack_pixel(present, value);
      store_pixel(params.sum + offset, present);
    }
    activate(value, params.gamma);
    pack_pixel(present, value);
    if constexpr (LL_FORM == kStacked) {
      store_pixel(target, before_last);
      store_pixel(target + kPixelBytes, last);
      store_pixel(target + 2 * kPixelBytes, present);
      target += 3 * frame_bytes;
    } else {
      store_pixel(target, present);
      target += frame_bytes;
    }
    copy(before_last, last);
    copy(last, present);
  }
  if constexpr (LL_FORM != kAlone) {
    store_pixel(params.history_next + remembered, before_last);
    store_pixel(params.history_next + remembered + frame_bytes, last);
  }
}
