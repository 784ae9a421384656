// The last convolution, 3x3x3 into three colors, by a kernel of its own: a general one wastes its
// tensor cores on so few outputs.
//
// A frame of activations contributes to three frames of pictures, and a pixel to three columns of
// them, so one matrix product gives 27 sums for each input pixel: 3 frames x 3 columns x 3 colors. The
// sums of three frames and three rows meet in registers. As a frame of pictures is complete, its sums
// of neighboring columns meet in shared memory.
//
// A warp works on one row of 32 input pixels, of which the inner 30 are its outputs.
#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/vectors.cuh"

namespace {

constexpr int kColors = 3;
constexpr int kTaps = 3;
constexpr int kFrameSums = kTaps * kColors;        // of one frame of pictures
constexpr int kSums = kTaps * kFrameSums;          // 27, of the three that are open
constexpr int kTilesN = 4;                         // of eight sums
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = kWarps + 2;
constexpr int kColumns = 32;
constexpr int kTilesM = kColumns / 16;
constexpr int kOutColumns = kColumns - 2;
constexpr int kPixelBytes = kDim * 2;
constexpr int kChunks = kDim / 8;
constexpr int kSteps = (kDim + 15) / 16;
constexpr int kPitch = kSteps * 32 + 16;           // an odd number of chunks: no bank conflicts
constexpr int kTileBytes = kRows * kColumns * kPitch;
constexpr int kWeightRows = kTaps * kTilesN * 8;   // per row of taps: 27 sums and 5 zeros
constexpr int kWeightBytes = kWeightRows * kPitch;
constexpr int kScratch = kColumns * kFrameSums;    // floats of a warp

struct Params {
  const uint8* x;       // [batch, 2 + frames, height, width, LL_DIM]
  const uint8* weight;  // [3 rows of taps, 27 sums, LL_DIM]
  uint16* output;       // [batch, frames, height, width, 3]
  int frames;
  int height;
  int width;
};
static_assert(sizeof(Params) == 40, "as plugins/kernels/vae.py lays it out");

__device__ __forceinline__ void load_matrices(uint32 (&m)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// Zeros where the sums or the channels are not whole tiles, and never touched again.
__device__ __forceinline__ void load_weights(uint32 weights, const uint8* source) {
  for (int i = threadIdx.x; i < kWeightRows * kSteps * 2; i += kThreads) {
    const int row = i / (kSteps * 2);
    const int chunk = i % (kSteps * 2);
    const int sum = row % (kTilesN * 8);
    const bool wanted = sum < kSums && chunk < kChunks;
    const int from = (row / (kTilesN * 8) * kSums + sum) * kPixelBytes + chunk * 16;
    copy_chunk(weights + row * kPitch + chunk * 16, source + (wanted ? from : 0), wanted);
  }
}

// Zeros beyond the picture, and in channels that fill up a step.
__device__ __forceinline__ void load_tile(uint32 tile, const uint8* frame, const Params& params) {
  const int first_row = static_cast<int>(blockIdx.y) * kWarps - 1;
  const int first_column = static_cast<int>(blockIdx.x) * kOutColumns - 1;
  for (int i = threadIdx.x; i < kRows * kColumns * kSteps * 2; i += kThreads) {
    const int pixel = i / (kSteps * 2);
    const int chunk = i % (kSteps * 2);
    const int row = first_row + pixel / kColumns;
    const int column = first_column + pixel % kColumns;
    const bool wanted = row >= 0 && row < params.height && column >= 0 &&
                        column < params.width && chunk < kChunks;
    const int64 from = (static_cast<int64>(row) * params.width + column) * kPixelBytes + chunk * 16;
    copy_chunk(tile + pixel * kPitch + chunk * 16, wanted ? frame + from : params.x, wanted);
  }
}

using Sums = float[kTilesM][kTilesN][4];

// Which of the weights' rows is the lane's for a column of sums: those of the open frames move on by
// one with every frame, so that sums stay where they are.
__device__ __forceinline__ int weight_row(int sum, int step) {
  const int tap = (step + 2 - sum / kFrameSums) % kTaps;
  return sum < kSums ? tap * kFrameSums + sum % kFrameSums : sum;
}

__device__ __forceinline__ void add_frame(Sums& sums, uint32 tile, uint32 weights, int step) {
  const int lane = lane_id();
  const int warp = threadIdx.x / 32;
  const uint32 row_of_tile = tile + (warp * kColumns + lane % 16) * kPitch + lane / 16 * 16;
  uint32 column[kTilesN / 2];
#pragma unroll
  for (int pair = 0; pair < kTilesN / 2; ++pair) {
    const int sum = (2 * pair + lane / 16) * 8 + lane % 8;
    column[pair] = weights + weight_row(sum, step) * kPitch + lane / 8 % 2 * 16;
  }
#pragma unroll 1
  for (int tap = 0; tap < kTaps; ++tap) {
    const uint32 pixels = row_of_tile + tap * kColumns * kPitch;
    const uint32 rows = tap * kTilesN * 8 * kPitch;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32 b[kTilesN / 2][4];
#pragma unroll
      for (int pair = 0; pair < kTilesN / 2; ++pair) {
        load_matrices(b[pair], column[pair] + rows + k * 32);
      }
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        uint32 a[4];
        load_matrices(a, pixels + m * 16 * kPitch + k * 32);
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
          multiply_add<kElement>(sums[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }
}

// The sums of one frame of pictures, which is complete, leave the registers.
__device__ __forceinline__ void take_out(Sums& sums, float* scratch, int frame_slot) {
  const int lane = lane_id();
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int sum = n * 8 + lane % 4 * 2 + j % 2 - frame_slot * kFrameSums;
      if (sum < 0 || sum >= kFrameSums) continue;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        scratch[(m * 16 + lane / 4 + j / 2 * 8) * kFrameSums + sum] = sums[m][n][j];
        sums[m][n][j] = 0.0f;
      }
    }
  }
  __syncwarp();
}

__device__ __forceinline__ void store_row(const Params& params, const float* scratch,
                                          int frame) {
  const int lane = lane_id();
  const int row = blockIdx.y * kWarps + threadIdx.x / 32;
  const int column = static_cast<int>(blockIdx.x) * kOutColumns - 1 + lane;
  if (lane >= 1 && lane <= kOutColumns && row < params.height && column < params.width) {
    const int64 index = static_cast<int64>(blockIdx.z) * params.frames + frame;
    const int64 pixel = (index * params.height + row) * params.width + column;
#pragma unroll
    for (int color = 0; color < kColors; ++color) {
      const float* left = scratch + (lane - 1) * kFrameSums + color;
      const float sum = left[0] + left[kFrameSums + kColors] + left[2 * kFrameSums + 2 * kColors];
      params.output[pixel * kColors + color] =
          static_cast<uint16>(pack_halves<kElement>(sum, 0.0f));
    }
  }
  __syncwarp();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2)
    vae_head(const __grid_constant__ Params params) {
  extern __shared__ __align__(16) uint8 shared[];
  const uint32 tile = shared_address(shared);
  const uint32 weights = tile + kTileBytes;
  float* scratch = reinterpret_cast<float*>(shared + kTileBytes + kWeightBytes) +
                   threadIdx.x / 32 * kScratch;
  load_weights(weights, params.weight);
  Sums sums{};
  const int64 frame_bytes = static_cast<int64>(params.height) * params.width * kPixelBytes;
  const int steps = params.frames + 2;
  const uint8* frame = params.x + blockIdx.z * steps * frame_bytes;
  for (int step = 0; step < steps; ++step, frame += frame_bytes) {
    load_tile(tile, frame, params);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    add_frame(sums, tile, weights, step);
    __syncthreads();
    take_out(sums, scratch, step % kTaps);
    if (step >= 2) store_row(params, scratch, step - 2);
    __syncwarp();
  }
}
