// GELU(scale x W^T + bias) in E4M3, of x and W in E4M3; GELU hides under the products of other rows.
//
// A CTA keeps the weights of 128 columns in shared memory, all their inputs, while rows stream past
// them, 64 at a time: a unit. Units are shared out column by column in even parts, so most CTAs change
// their weights once, slab by slab as the last rows have passed.
//
// One warp fetches rows and one weights. Two warpgroups have whole units, in turns: one multiplies
// while the other has bias, GELU and rounding to do. A turn is handed over when the last instruction
// is given, not when it has ended, so that the tensor cores never wait.
//
// The copy engine reads the weights' rows in an order in which a thread's sums are eight neighboring
// columns, which are stored at once; what four threads store lies together.
#include "attention/hopper.cuh"
#include "attention/wgmma.cuh"
#include "common/vectors.cuh"

#ifndef LL_STEPS
#define LL_STEPS 12
#define LL_STAGES 4
#define LL_SHARED_BYTES 229648
#endif

namespace {

constexpr int kRows = 64;
constexpr int kColumns = 128;
constexpr int kStep = 128;  // inputs of a stage: a row of it is one swizzle
constexpr int kInstruction = 32;  // inputs
constexpr int kSteps = LL_STEPS;
constexpr int kStages = LL_STAGES;
constexpr int kSlabBytes = kColumns * kStep;
constexpr int kStageBytes = kRows * kStep;
constexpr int kRowsAt = kSteps * kSlabBytes;
constexpr int kBarriersAt = kRowsAt + kStages * kStageBytes;
constexpr int kWarpgroup = 128;
constexpr int kWarps = kWarpgroup / 32;
constexpr int kOwn = 8;  // neighboring columns of a thread
constexpr int kGroup = 4 * kOwn;
constexpr int kGroups = kColumns / kGroup;
static_assert(kBarriersAt + 8 * (2 * kSteps + 2 * kStages + 2) == LL_SHARED_BYTES,
              "as plugins/kernels/gelu_product.py counts them");

struct Params {
  TensorMap x;
  TensorMap weight;
  const uint16* bias;
  const float* factor;  // of the result
  uint8* output;
  float scale;  // of the product
  int rows;
  int columns;
};
static_assert(sizeof(Params) == 320, "as plugins/kernels/gelu_product.py lays it out");

struct Shared {
  uint8* weights;
  uint8* rows;
  uint64* weights_are_full;
  uint64* weights_are_free;
  uint64* rows_are_full;
  uint64* rows_are_free;
  uint64* has_ended;  // the products of a warpgroup's unit
};

__device__ __forceinline__ Shared shared_parts(uint8* memory) {
  uint64* barriers = reinterpret_cast<uint64*>(memory + kBarriersAt);
  return {memory,
          memory + kRowsAt,
          barriers,
          barriers + kSteps,
          barriers + 2 * kSteps,
          barriers + 2 * kSteps + kStages,
          barriers + 2 * kSteps + 2 * kStages};
}

// What a CTA has to do; its units lie behind each other, first all rows of the same columns.
struct Share {
  int tiles;  // of rows
  int first;
  int end;

  __device__ __forceinline__ int row(int unit) const { return unit % tiles * kRows; }
  __device__ __forceinline__ int column(int unit) const { return unit / tiles * kColumns; }
  // How often the weights have changed.
  __device__ __forceinline__ int change(int unit) const { return unit / tiles - first / tiles; }
};

__device__ __forceinline__ Share share_of(const Params& params) {
  const int tiles = ceil_div(params.rows, kRows);
  const int64 units = static_cast<int64>(tiles) * (params.columns / kColumns);
  const int own = blockIdx.x;
  return {tiles, static_cast<int>(units * own / gridDim.x),
          static_cast<int>(units * (own + 1) / gridDim.x)};
}

// Where a stage of rows is in the ring; `position` counts all of them from the first.
__device__ __forceinline__ int stage_of(int position) { return position % kStages; }
__device__ __forceinline__ uint32 phase_of(int position) { return position / kStages & 1; }

// ---- loading ------------------------------------------------------------------------------------

// Beyond the last row there are zeros.
__device__ __forceinline__ void load_rows(const Params& params, const Shared& shared,
                                          const Share& share) {
  int position = 0;
  for (int unit = share.first; unit < share.end; ++unit) {
    for (int step = 0; step < kSteps; ++step, ++position) {
      const int stage = stage_of(position);
      uint64* full = shared.rows_are_full + stage;
      barrier_wait(shared.rows_are_free + stage, phase_of(position) ^ 1);
      barrier_expect_bytes(full, kStageBytes);
      load_box(shared.rows + stage * kStageBytes, &params.x, full, step * kStep, share.row(unit));
    }
  }
}

__device__ __forceinline__ void load_weights(const Params& params, const Shared& shared,
                                             const Share& share) {
  for (int unit = share.first; unit < share.end; unit += share.tiles - unit % share.tiles) {
    const int group = share.column(unit) / kGroup;
    for (int step = 0; step < kSteps; ++step) {
      uint64* full = shared.weights_are_full + step;
      barrier_wait(shared.weights_are_free + step, share.change(unit) & 1 ^ 1);
      barrier_expect_bytes(full, kSlabBytes);
      load_box(shared.weights + step * kSlabBytes, &params.weight, full, step * kStep, 0, 0, 0,
               group);
    }
  }
}

// ---- multiplying --------------------------------------------------------------------------------

using Sums = float[kColumns / 2];

__device__ __forceinline__ void take_turn(int mine) { named_sync(1 + mine, 2 * kWarpgroup); }
__device__ __forceinline__ void give_turn(int mine) { named_arrive(2 - mine, 2 * kWarpgroup); }

__device__ __forceinline__ void leave(uint64* barrier) {
  if (lane_id() == 0) barrier_arrive(barrier);
}

__device__ __forceinline__ void leave_rows(const Shared& shared, int position) {
  leave(shared.rows_are_free + stage_of(position));
}

__device__ __forceinline__ void multiply_step(Sums& sums, uint64 rows, uint64 weights, int step) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kStep / kInstruction; ++i) {
    const int at = i * kInstruction >> 4;
    Wgmma<kE4M3, kColumns>::shared(sums, rows + at, weights + at, step + i != 0);
  }
  wgmma_commit();
}

// A stage of rows is free one step later, when its instructions have ended. The last rows under these
// weights free them, too: what the other warpgroup multiplied before has ended then, but perhaps for its
// last step, which is waited for.
__device__ __forceinline__ void multiply_unit(Sums& sums, const Shared& shared, const Share& share,
                                              int unit, int mine) {
  const int turn = unit - share.first;
  const uint32 phase = share.change(unit) & 1;
  const bool frees_weights = share.row(unit + 1) == 0;
  const uint64 rows = matrix_descriptor<kStep>(shared_address(shared.rows));
  const uint64 weights = matrix_descriptor<kStep>(shared_address(shared.weights));
  int position = turn * kSteps;
#pragma unroll
  for (int step = 0; step < kSteps; ++step, ++position) {
    const int stage = stage_of(position);
    barrier_wait(shared.weights_are_full + step, phase);
    barrier_wait(shared.rows_are_full + stage, phase_of(position));
    multiply_step(sums, rows + (stage * kStageBytes >> 4), weights + (step * kSlabBytes >> 4), step);
    wgmma_wait<1>();
    if (step > 0) {
      leave_rows(shared, position - 1);
      if (frees_weights) leave(shared.weights_are_free + step - 1);
    }
  }
  if (turn > 0) barrier_wait(shared.has_ended + 1 - mine, (turn - 1) / 2 & 1);
  if (unit + 1 < share.end) give_turn(mine);
  wgmma_wait<0>();
  pin(sums);
  leave(shared.has_ended + mine);
  leave_rows(shared, position - 1);
  if (frees_weights) leave(shared.weights_are_free + kSteps - 1);
}

// ---- finishing ----------------------------------------------------------------------------------

// Two columns in each word.
using Bias = uint32[kGroups][kOwn / 2];

__device__ __forceinline__ void load_bias(Bias& bias, const Params& params, int column) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const uint4 four = *reinterpret_cast<const uint4*>(params.bias + column + group * kGroup);
    bias[group][0] = four.x, bias[group][1] = four.y;
    bias[group][2] = four.z, bias[group][3] = four.w;
  }
}

// The form with the hyperbolic tangent, times twice `half`.
__device__ __forceinline__ float gelu(float x, float half) {
  constexpr float kLinear = 0.7978845608f;  // sqrt(2 / pi)
  constexpr float kCubic = 0.044715f * kLinear;
  const float inner = x * fmaf(x * x, kCubic, kLinear);
  float tangent;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tangent) : "f"(inner));
  const float halved = x * half;
  return fmaf(halved, tangent, halved);
}

__device__ __forceinline__ void finish(const Params& params, const Sums& sums, const Bias& bias,
                                       int first_row, int column, float half) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int row = first_row + 8 * below;
    uint8* target = params.output + static_cast<int64>(row) * params.columns + column;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const float* own = sums + group * 2 * kOwn + 2 * below;
      uint32 words[kOwn / 4];
#pragma unroll
      for (int i = 0; i < kOwn / 4; ++i) {
        float v[4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float* pair = own + 4 * (2 * i + j);
          float low;
          float high;
          unpack_halves(bias[group][2 * i + j], low, high);
          v[2 * j] = gelu(fmaf(pair[0], params.scale, low), half);
          v[2 * j + 1] = gelu(fmaf(pair[1], params.scale, high), half);
        }
        words[i] = pack_e4m3(v[0], v[1], v[2], v[3]);
      }
      if (row < params.rows) {
        *reinterpret_cast<uint2*>(target + group * kGroup) = make_uint2(words[0], words[1]);
      }
    }
  }
}

// ---- all of it ----------------------------------------------------------------------------------

__device__ __forceinline__ void consume(const Params& params, const Shared& shared,
                                        const Share& share, int mine) {
  const float half = 0.5f * *params.factor;
  const int own_row = threadIdx.x / 32 % kWarps * 16 + lane_id() / 4;
  const int own_column = lane_id() % 4 * kOwn;
  Sums sums;
  Bias bias;
  for (int unit = share.first + mine; unit < share.end; unit += 2) {
    const int column = share.column(unit) + own_column;
    load_bias(bias, params, column);
    if (unit > share.first) take_turn(mine);
    multiply_unit(sums, shared, share, unit, mine);
    finish(params, sums, bias, share.row(unit) + own_row, column, half);
  }
}

__device__ __forceinline__ void init_barriers(const Shared& shared) {
  for (int i = 0; i < kSteps; ++i) {
    barrier_init(shared.weights_are_full + i, 1);
    barrier_init(shared.weights_are_free + i, kWarps);
  }
  for (int i = 0; i < kStages; ++i) {
    barrier_init(shared.rows_are_full + i, 1);
    barrier_init(shared.rows_are_free + i, kWarps);
  }
  for (int i = 0; i < 2; ++i) barrier_init(shared.has_ended + i, kWarps);
  fence_barrier_init();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(3 * kWarpgroup, 1)
    gelu_product(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8 memory[];
  const Shared shared = shared_parts(memory);
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();
  const Share share = share_of(params);
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    if (threadIdx.x == 0) load_rows(params, shared, share);
    if (threadIdx.x == 32) load_weights(params, shared, share);
  } else {
    consume(params, shared, share, warpgroup - 1);
  }
}
