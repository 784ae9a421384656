// The last convolution of a decoder without taps in time: ReLU of what is spread, 3x3 into three colors,
// from 0 to 1, as float32 planes or, with LL_PICTURES, in eight bits.
//
// A row of activations contributes to three rows of pictures, and a pixel to three columns of them, so
// one matrix product gives 27 sums for each input pixel: 3 rows x 3 columns x 3 colors. A warp goes down
// a strip of 32 input pixels, of which the inner 30 are its outputs: the sums of three rows meet in
// registers, those of neighboring columns in shared memory as a row is complete.
//
// A lane reads eight neighboring channels of a pixel at once, and takes them as those columns of the
// product that are its own; weights are read in the same order.
#include "common/mma.cuh"
#include "vae/pictures.cuh"
#include "vae/spread.cuh"

#ifndef LL_PICTURES
#define LL_PICTURES 1
#endif

namespace {

constexpr int kTaps = 3;
constexpr int kRowSums = kTaps * kColors;       // of one row of pictures
constexpr int kSums = kTaps * kRowSums;         // 27, of the three that are open
constexpr int kTilesN = 4;                      // of eight sums
constexpr int kColumns = 32;
constexpr int kTilesM = kColumns / 16;
constexpr int kOutColumns = kColumns - 2;
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQuads = ceil_div(kChunks, 4);    // of chunks: what four lanes read of a pixel at once
constexpr int kUnrolled = kQuads > 4 ? 1 : kQuads;
constexpr int kPhases = kTaps;
constexpr int kWeights = kPhases * kTilesN * kQuads * 32;  // of sixteen bytes
constexpr int kScratch = kColumns * kRowSums;   // floats of a warp

struct Params {
  const uint8* x;       // [batch * frames, height / 2 + 1, width / 2 + 1, frames of a place, 4, LL_DIM]
  const uint8* weight;  // [27, LL_DIM]: by row, column and color
  const uint16* bias;
  void* output;         // planes [batch, frames, 3, height, width], pictures with colors last
  int frames;           // of x, of each row of the batch
  int skipped;          // pictures that are not made: the first of each row of the batch
  int height;
  int width;
  int strips;
  int rows;             // of a warp
};
static_assert(sizeof(Params) == 56, "as plugins/kernels/vae_colors.py lays it out");

using Sums = float[kTilesM][kTilesN][4];
using Quad = uint4[kTilesM][2];  // of pixels lane / 4 and lane / 4 + 8 of each tile: four lanes' chunks

// Which of the weights' rows is a column of sums: those of the open rows of pictures move on by one with
// every row of pixels, so that sums stay where they are.
__device__ __forceinline__ int weight_row(int sum, int phase) {
  const int tap = (phase + kTaps - sum / kRowSums) % kTaps;
  return tap * kRowSums + sum % kRowSums;
}

// As lanes read them, [phase][tile][quad][lane], with zeros where sums or channels are not whole tiles.
__device__ __forceinline__ void load_weights(uint4* weights, const uint8* source) {
  for (int i = threadIdx.x; i < kWeights; i += kThreads) {
    const int lane = i % 32;
    const int chunk = i / 32 % kQuads * 4 + lane % 4;
    const int sum = i / (32 * kQuads) % kTilesN * 8 + lane / 4;
    const int row = weight_row(sum, i / (32 * kQuads * kTilesN));
    const bool wanted = sum < kSums && chunk < kChunks;
    const uint8* from = source + row * kPixelBytes + chunk * 16;
    weights[i] = wanted ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
  }
}

// As whole numbers, halves below zero are below zero.
__device__ __forceinline__ uint32 relu_halves(uint32 packed) { return __vmaxs2(packed, 0); }

__device__ __forceinline__ void relu_quad(Quad& active, const Quad& words) {
#pragma unroll
  for (int i = 0; i < 2 * kTilesM; ++i) {
    const uint4 four = words[i / 2][i % 2];
    active[i / 2][i % 2] = make_uint4(relu_halves(four.x), relu_halves(four.y),
                                      relu_halves(four.z), relu_halves(four.w));
  }
}

template <int kPhase>
__device__ __forceinline__ void add_quad(Sums& sums, const Quad& active, const uint4* weights,
                                         int quad) {
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    const uint4 b = weights[((kPhase * kTilesN + n) * kQuads + quad) * 32 + lane_id()];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      const uint4 upper = active[m][0];
      const uint4 lower = active[m][1];
      const uint32 first[4] = {upper.x, lower.x, upper.y, lower.y};
      const uint32 second[4] = {upper.z, lower.z, upper.w, lower.w};
      multiply_add<kElement>(sums[m][n], first, b.x, b.y);
      multiply_add<kElement>(sums[m][n], second, b.z, b.w);
    }
  }
}

// The sums of a row of pictures, which is complete, leave the registers.
template <int kSlot>
__device__ __forceinline__ void take_out(Sums& sums, float* scratch) {
  const int lane = lane_id();
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    if (n * 8 + 7 < kSlot * kRowSums || n * 8 >= (kSlot + 1) * kRowSums) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int sum = n * 8 + lane % 4 * 2 + j % 2 - kSlot * kRowSums;
      if (sum < 0 || sum >= kRowSums) continue;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        scratch[(m * 16 + lane / 4 + j / 2 * 8) * kRowSums + sum] = sums[m][n][j];
        sums[m][n][j] = 0.0f;
      }
    }
  }
  __syncwarp();
}

__device__ __forceinline__ void store_row(const Params& params, const float* scratch, int row,
                                          int column) {
  const int lane = lane_id();
  if (lane >= 1 && lane <= kOutColumns && column + lane < params.width) {
    const int64 plane = static_cast<int64>(params.height) * params.width;
    const int64 pixel = static_cast<int64>(row) * params.width + column + lane;
    const int64 frame = blockIdx.y * kColors * plane;
#pragma unroll
    for (int color = 0; color < kColors; ++color) {
      const float* left = scratch + (lane - 1) * kRowSums + color;
      const float sum = left[0] + left[kRowSums + kColors] + left[2 * kRowSums + 2 * kColors];
      const float value = clamped(sum + to_float(params.bias[color]), 0.0f);
      if constexpr (LL_PICTURES) {
        uint8* picture = static_cast<uint8*>(params.output) + frame + pixel * kColors;
        picture[color] = static_cast<uint8>(static_cast<uint32>(value * 255.0f));
      } else {
        static_cast<float*>(params.output)[frame + color * plane + pixel] = value;
      }
    }
  }
  __syncwarp();
}

// What a warp works on, and how far it is.
struct Strip {
  const uint8* pixels;  // of the frame, the lane's column and its chunk
  const uint4* weights;
  float* scratch;
  int column;  // of its first pixel: one before its first output
  int row;     // of pixels
  int begin;   // of its rows of pictures
  int end;     // of its rows of pixels
};

// Zeros beyond the picture, and in channels that fill up a quad.
__device__ __forceinline__ void load_quad(Quad& words, const Params& params, const Strip& strip,
                                          int row, int quad) {
  constexpr int64 kEightColumnsBytes = 4 * kPixelsOfPlace * kPixelBytes;
  const bool inside = row >= 0 && row < params.height && row < strip.end &&
                      (kChunks % 4 == 0 || quad * 4 + lane_id() % 4 < kChunks);
  const int64 offset = static_cast<int64>(inside ? spread_row(row, params.width) : 0) * kPixelBytes;
  const uint8* pixel = strip.pixels + offset + quad * 64;
#pragma unroll
  for (int i = 0; i < 2 * kTilesM; ++i) {
    const int column = strip.column + lane_id() / 4 + 8 * i;
    const bool wanted = inside && column >= 0 && column < params.width;
    words[i / 2][i % 2] =
        wanted ? load_passing(pixel + i * kEightColumnsBytes) : make_uint4(0, 0, 0, 0);
  }
}

// One row of pixels; the next quad of chunks is on its way while one is multiplied.
template <int kPhase>
__device__ __forceinline__ void go_down(Sums& sums, Quad& words, const Params& params,
                                        Strip& strip) {
#pragma unroll kUnrolled
  for (int quad = 0; quad < kQuads; ++quad) {
    Quad active;
    relu_quad(active, words);
    const bool ends = quad + 1 == kQuads;
    load_quad(words, params, strip, strip.row + ends, ends ? 0 : quad + 1);
    add_quad<kPhase>(sums, active, strip.weights, quad);
  }
  // Two rows of pixels after its first, a row of pictures is complete; before, nothing is.
  take_out<(kPhase + 1) % kTaps>(sums, strip.scratch);
  if (strip.row > strip.begin) store_row(params, strip.scratch, strip.row - 1, strip.column);
  ++strip.row;
}

// Of the frame that these blocks make, the first pixel in x.
__device__ __forceinline__ const uint8* frame_of(const Params& params) {
  const int made = params.frames * kFramesOfPlace - params.skipped;
  const int video = blockIdx.y / made;
  const int frame = blockIdx.y % made + params.skipped;
  const int64 together = video * params.frames + frame / kFramesOfPlace;
  return params.x + together * spread_bytes(params.height, params.width) +
         frame % kFramesOfPlace * (4 * kPixelBytes);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 4)
    vae_colors(const __grid_constant__ Params params) {
  extern __shared__ __align__(16) uint8 shared[];
  uint4* weights = reinterpret_cast<uint4*>(shared);
  load_weights(weights, params.weight);
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int item = blockIdx.x * kWarps + warp;
  const int first_row = item / params.strips * params.rows;
  if (first_row >= params.height) return;
  Strip strip;
  strip.weights = weights;
  strip.scratch = reinterpret_cast<float*>(weights + kWeights) + warp * kScratch;
  strip.column = item % params.strips * kOutColumns - 1;
  const int place = spread_column(strip.column + lane_id() / 4);
  strip.pixels = frame_of(params) + place * kPixelBytes + lane_id() % 4 * 16;
  strip.begin = first_row;
  strip.row = first_row - 1;
  strip.end = smaller(first_row + params.rows, params.height) + 1;
  Sums sums{};
  Quad words;
  load_quad(words, params, strip, strip.row, 0);
  while (true) {
    go_down<0>(sums, words, params, strip);
    if (strip.row == strip.end) break;
    go_down<1>(sums, words, params, strip);
    if (strip.row == strip.end) break;
    go_down<2>(sums, words, params, strip);
    if (strip.row == strip.end) break;
  }
}
