// The last convolution of a decoder without taps in time: ReLU of what is spread, 3x3 into three colors,
// from 0 to 1, as float32 planes and as 8-bit pictures.
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
  float* planes;        // [batch, frames, 3, height, width]
  uint8* pictures;      // [batch, frames, height, width, 3]
  int frames;           // of x, of each row of the batch
  int skipped;          // pictures that are not made: the first of each row of the batch
  int height;
  int width;
  int strips;
  int rows;             // of a warp
};
static_assert(sizeof(Params) == 64, "as plugins/kernels/vae_colors.py lays it out");

using Sums = float[kTilesM][kTilesN][4];
using Quad = uint4[kTilesM][2];  // of pixels lane / 4 and lane / 4 + 8 of each tile: four lanes' chunks

// Where the columns of a lane's pixels lie in a row; nowhere, beyond the picture.
struct Columns {
  int place[kTilesM][2];
};

__device__ __forceinline__ Columns columns_of(int first, int width) {
  Columns columns;
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = first + m * 16 + half * 8 + lane_id() / 4;
      const bool inside = column >= 0 && column < width;
      columns.place[m][half] = inside ? spread_column(column) : -1;
    }
  }
  return columns;
}

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

__device__ __forceinline__ void load_quad(Quad& words, const uint8* row, bool inside,
                                          const Columns& columns, int quad) {
  const int chunk = quad * 4 + lane_id() % 4;
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = columns.place[m][half];
      const bool wanted = inside && place >= 0 && (kChunks % 4 == 0 || chunk < kChunks);
      words[m][half] = wanted
                           ? load_passing(row + static_cast<int64>(place) * kPixelBytes + chunk * 16)
                           : make_uint4(0, 0, 0, 0);
    }
  }
}

// As whole numbers, halves below zero are below zero.
__device__ __forceinline__ uint32 relu_halves(uint32 packed) { return __vmaxs2(packed, 0); }

template <int kPhase>
__device__ __forceinline__ void add_quad(Sums& sums, const Quad& words, const uint4* weights,
                                         int quad) {
  uint4 b[kTilesN];
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    b[n] = weights[((kPhase * kTilesN + n) * kQuads + quad) * 32 + lane_id()];
  }
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
    const uint4 upper = words[m][0];
    const uint4 lower = words[m][1];
    const uint32 first[4] = {relu_halves(upper.x), relu_halves(lower.x), relu_halves(upper.y),
                             relu_halves(lower.y)};
    const uint32 second[4] = {relu_halves(upper.z), relu_halves(lower.z), relu_halves(upper.w),
                              relu_halves(lower.w)};
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
      multiply_add<kElement>(sums[m][n], first, b[n].x, b[n].y);
      multiply_add<kElement>(sums[m][n], second, b[n].z, b[n].w);
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
    float* planes = params.planes + blockIdx.y * kColors * plane + pixel;
    uint8* picture = params.pictures + (blockIdx.y * plane + pixel) * kColors;
#pragma unroll
    for (int color = 0; color < kColors; ++color) {
      const float* left = scratch + (lane - 1) * kRowSums + color;
      const float sum = left[0] + left[kRowSums + kColors] + left[2 * kRowSums + 2 * kColors];
      const float value = clamped(sum + to_float(params.bias[color]), 0.0f);
      planes[color * plane] = value;
      picture[color] = static_cast<uint8>(static_cast<uint32>(value * 255.0f));
    }
  }
  __syncwarp();
}

// What a warp works on, and how far it is.
struct Strip {
  const uint8* frame;
  const uint4* weights;
  float* scratch;
  Columns columns;
  int column;  // of its first pixel: one before its first output
  int row;     // of pixels
  int end;     // of its rows of pixels
  int step;
};

__device__ __forceinline__ void load_item(Quad& words, const Params& params, const Strip& strip,
                                          int row, int quad) {
  const bool inside = row >= 0 && row < params.height && row < strip.end;
  const int64 offset = inside ? spread_row(row, params.width) : 0;
  load_quad(words, strip.frame + offset * kPixelBytes, inside, strip.columns, quad);
}

// One row of pixels; the next quad of chunks is on its way while one is multiplied.
template <int kPhase>
__device__ __forceinline__ void go_down(Sums& sums, Quad& words, const Params& params,
                                        Strip& strip) {
#pragma unroll kUnrolled
  for (int quad = 0; quad < kQuads; ++quad) {
    Quad next;
    const bool ends = quad + 1 == kQuads;
    load_item(next, params, strip, strip.row + ends, ends ? 0 : quad + 1);
    add_quad<kPhase>(sums, words, strip.weights, quad);
#pragma unroll
    for (int i = 0; i < 2 * kTilesM; ++i) words[i / 2][i % 2] = next[i / 2][i % 2];
  }
  // Two rows of pixels after its first, a row of pictures is complete; before, nothing is.
  take_out<(kPhase + 1) % kTaps>(sums, strip.scratch);
  if (strip.step >= 2) store_row(params, strip.scratch, strip.row - 1, strip.column);
  ++strip.row;
  ++strip.step;
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
  strip.frame = frame_of(params);
  strip.weights = weights;
  strip.scratch = reinterpret_cast<float*>(weights + kWeights) + warp * kScratch;
  strip.column = item % params.strips * kOutColumns - 1;
  strip.columns = columns_of(strip.column, params.width);
  strip.row = first_row - 1;
  strip.end = smaller(first_row + params.rows, params.height) + 1;
  strip.step = 0;
  Sums sums{};
  Quad words;
  load_item(words, params, strip, strip.row, 0);
  while (true) {
    go_down<0>(sums, words, params, strip);
    if (strip.row == strip.end) break;
    go_down<1>(sums, words, params, strip);
    if (strip.row == strip.end) break;
    go_down<2>(sums, words, params, strip);
    if (strip.row == strip.end) break;
  }
}
