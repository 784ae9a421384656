// The consumer side of sink-window attention on Hopper: what a warpgroup of 64 query rows does with
// blocks of keys and values that a producer lays into shared memory.
//
// Everything is fixed at compile time by the LL_ constants (see plugins/variants.py).
#pragma once

#include "attention/hopper.cuh"
#include "attention/schedule.cuh"
#include "attention/wgmma.cuh"

#ifndef LL_ELEMENT
#define LL_ELEMENT 0
#define LL_HEAD_DIM 128
#define LL_WARPGROUPS 3
#define LL_TILE_KEYS 80
#define LL_STAGES 3
#define LL_PIPELINED 1
#define LL_ORDERED 1
#endif
#ifndef LL_CHECKED
#define LL_CHECKED 0
#endif
#ifndef LL_PROMOTED
#define LL_PROMOTED 0
#endif
#ifndef LL_HALVES
#define LL_HALVES 0
#endif
#ifndef LL_REST_ALIKE
#define LL_REST_ALIKE 0
#endif

namespace {

constexpr int kElement = LL_ELEMENT;
constexpr bool kIntegers = kElement == kInt8;  // queries and keys; values are E4M3 then
constexpr bool kBytes = kElement == kE4M3 || kIntegers;
constexpr int kElementBytes = kBytes ? 1 : 2;
constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kWarpgroups = LL_WARPGROUPS;
constexpr int kTileRows = 64 * kWarpgroups;
constexpr int kTileKeys = LL_TILE_KEYS;
constexpr int kStages = LL_STAGES;
constexpr bool kPipelined = LL_PIPELINED;
constexpr bool kOrdered = LL_ORDERED;

// In a checked build every thread arrives at a barrier for itself, which is slower and lets a race
// checker follow what otherwise one thread arrives for.
constexpr bool kChecked = LL_CHECKED;
// The tensor cores' 8-bit sums keep 14 bits and cut off the rest, always toward zero: over thousands of
// keys, what the values have in common shrinks by a fifth. So a few blocks are summed by themselves,
// and these sums are added in float32. 0: never.
constexpr int kPromotedBlocks = LL_PROMOTED;
// The keys that follow the valid ones are like the last of these, which counts for them all.
constexpr bool kRestAlike = LL_REST_ALIKE;
static_assert(!kRestAlike || !kBytes, "what is added to a score has one scale");
constexpr int kQueryReleases = kChecked ? 128 : 1;  // per warpgroup
constexpr int kStageReleases = kChecked ? 128 : 4;

constexpr int kPanelBytes = 128;  // the width of the swizzle: tiles are stored in panels this wide
constexpr int kRowPanels = kHeadDim * kElementBytes / kPanelBytes;
#ifdef LL_OUT
constexpr int kOutElement = LL_OUT;
#else
constexpr int kOutElement = kBytes ? static_cast<int>(kBfloat16) : kElement;
#endif
constexpr bool kOutE4M3 = kOutElement == kE4M3;  // multiplied by out_factor
constexpr int kOutElementBytes = kOutE4M3 ? 1 : 2;
constexpr int kOutPanels = kHeadDim * kOutElementBytes / kPanelBytes;
constexpr int kStepKeys = 32 / kElementBytes;  // keys per matrix instruction in P V
constexpr int kQueryBytes = kTileRows * kHeadDim * kElementBytes;
constexpr int kOutBytes = kTileRows * kHeadDim * kOutElementBytes;
constexpr int kStageBytes = kTileKeys * kHeadDim * kElementBytes;
constexpr int kQueryBuffers = 2;
constexpr int kThreads = 128 * (kWarpgroups + 1);
constexpr int kConsumerRegisters = kWarpgroups == 3 ? 160 : 240;
// What the launch grants the whole block (168 or 128 a thread) bounds the sum over warpgroups.
constexpr int kProducerRegisters = kWarpgroups == 3 ? 32 : 24;

static_assert(kHeadDim * kElementBytes % kPanelBytes == 0, "a row is whole panels");
static_assert(kOutPanels > 0, "a row of outputs is whole panels");

// 8-bit values are stored transposed, in panels of as many keys as the swizzle and the tile allow.
constexpr int kValuePanel = kTileKeys % 128 == 0 ? 128 : kTileKeys % 64 == 0 ? 64 : 32;
static_assert(!kBytes || kTileKeys % kValuePanel == 0, "a tile is whole panels");

// How far (in powers of two) a row's maximum may grow before its sums are rescaled, and the power of
// two that probabilities are multiplied with before they are rounded to 8 bits.
constexpr float kRescaleLimit = kBytes ? 4.0f : 8.0f;
constexpr float kProbabilityExponent = kBytes ? 4.0f : 0.0f;
constexpr float kIntegerBias = 12582912.0f;  // 1.5 x 2^23: see Wgmma<kInt8, N>

// Everything but the tensors themselves.
struct Problem {
  const int64* lengths[kMaxPieces];
  const float* q_scale;
  const float* k_scale;
  const float* v_scale;
  float4* partials;
  uint32* arrivals;
  int capacities[kMaxPieces];
  int batch;
  int heads;
  int queries;
  int q_scale_batch_stride;
  int q_scale_head_stride;
  int q_scale_token_stride;
  float scale_log2;
  float out_factor;
};
static_assert(sizeof(Problem) == 112, "as plugins/attention/hopper.py lays it out");

struct Barriers {
  uint64 query_full[kQueryBuffers];
  uint64 query_empty[kQueryBuffers];
  uint64 tail;
  uint64 key_full[kStages];
  uint64 key_empty[kStages];
  uint64 value_full[kStages];
  uint64 value_empty[kStages];
  int key_valid[kStages];  // with kRestAlike, negative in the block that ends with the last key
  int is_last[kWarpgroups];
  uint32* counters;  // of arrivals at shared tiles, where they are not an argument
  Segment segments[kQueryBuffers];  // what the queries in shared memory belong to
  float rest_score;  // with kRestAlike, what the last key's score gains
};

template <int kLength>
struct RingPosition {
  int stage = 0;
  uint32 phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kLength) {
      stage = 0;
      phase ^= 1;
    }
  }
};
using Ring = RingPosition<kStages>;
using QueryRing = RingPosition<kQueryBuffers>;

__device__ __forceinline__ void init_barriers(Barriers* barriers, int producers) {
  for (int buffer = 0; buffer < kQueryBuffers; ++buffer) {
    barrier_init(&barriers->query_full[buffer], producers);
    barrier_init(&barriers->query_empty[buffer], kQueryReleases * kWarpgroups);
  }
  barrier_init(&barriers->tail, 1);
  for (int stage = 0; stage < kStages; ++stage) {
    barrier_init(&barriers->key_full[stage], producers);
    barrier_init(&barriers->value_full[stage], producers);
    barrier_init(&barriers->key_empty[stage], kStageReleases * kWarpgroups);
    barrier_init(&barriers->value_empty[stage], kStageReleases * kWarpgroups);
  }
  fence_barrier_init();
}

struct TilePlace {
  int batch;
  int head;
  int row;
  __device__ __forceinline__ TilePlace(const Problem& problem, const Segment& segment) {
    const int tiles_per_head = ceil_div(problem.queries, kTileRows);
    const int head_index = segment.tile / tiles_per_head;
    row = (segment.tile - head_index * tiles_per_head) * kTileRows + segment.first_row;
    batch = head_index / problem.heads;
    head = head_index - batch * problem.heads;
  }
};

__device__ __forceinline__ int count_tiles(const Problem& problem) {
  return problem.batch * problem.heads * ceil_div(problem.queries, kTileRows);
}

constexpr int kScores = kTileKeys / 2;      // per thread
constexpr int kOutputs = kHeadDim / 2;      // per thread
constexpr int kPacked = kScores * kElementBytes / 4;

// 8-bit queries have a scale for each row; a thread holds two.
struct RowScales {
  float log2[kBytes ? 2 : 1];
  __device__ __forceinline__ float operator[](int half) const { return log2[kBytes ? half : 0]; }
};

struct RowState {
  float maximum[2] = {negative_infinity(), negative_infinity()};
  float sum[2] = {0.0f, 0.0f};
};

__device__ __forceinline__ void issue_scores(float (&scores)[kScores], uint32 queries,
                                             uint32 keys) {
  if constexpr (kIntegers) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) scores[i] = kIntegerBias;
    pin(scores);
  }
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kHeadDim * kElementBytes / 32; ++step) {
    const uint32 panel = step / 4;
    const uint32 offset = step % 4 * 32;
    Wgmma<kElement, kTileKeys>::shared(
        scores, matrix_descriptor<kPanelBytes>(queries + panel * kTileRows * kPanelBytes + offset),
        matrix_descriptor<kPanelBytes>(keys + panel * kTileKeys * kPanelBytes + offset), step != 0);
  }
  wgmma_commit();
}

__device__ __forceinline__ void issue_outputs(float (&outputs)[kOutputs],
                                              const uint32 (&probabilities)[kPacked],
                                              uint32 values) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kTileKeys / kStepKeys; ++step) {
    uint64 descriptor;
    if constexpr (kBytes) {
      const uint32 panel = step * 32 / kValuePanel;
      const uint32 offset = step * 32 % kValuePanel;
      descriptor =
          matrix_descriptor<kValuePanel>(values + panel * kHeadDim * kValuePanel + offset);
    } else {
      descriptor = matrix_descriptor<kPanelBytes>(values + step * kStepKeys * kPanelBytes,
                                                  kTileKeys * kPanelBytes);
    }
    Wgmma<kBytes ? kE4M3 : kElement, kHeadDim>::registers(outputs, probabilities + 4 * step, descriptor);
  }
  wgmma_commit();
}

__device__ __forceinline__ void mask_scores(float (&scores)[kScores], int valid) {
  const int first = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const int key = i / 4 * 8 + first + (i & 1);
    if (key >= valid) scores[i] = negative_infinity();
  }
}

__device__ __forceinline__ void raise_last(float (&scores)[kScores], int valid, float by) {
  const int first = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (i / 4 * 8 + first + (i & 1) == valid - 1) scores[i] += by;
  }
}

// Turns scores into unnormalized probabilities; `factor` is what earlier sums must be multiplied by.
__device__ __forceinline__ void softmax_step(float (&scores)[kScores], RowState& state,
                                             float (&factor)[2], const RowScales& scales) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = scores[2 * half];
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      maximum = fmaxf(maximum, fmaxf(scores[i + 2 * half], scores[i + 2 * half + 1]));
    }
    maximum = quad_max(maximum);
    const float previous = state.maximum[half];
    const float scale_log2 = scales[half];
    const bool grew = (maximum - previous) * scale_log2 > kRescaleLimit;
    state.maximum[half] = grew ? maximum : previous;
    factor[half] = grew ? exp2_approx((previous - maximum) * scale_log2) : 1.0f;
    const float offset = state.maximum[half] * scale_log2 - kProbabilityExponent;
    float sum0 = 0.0f;
    float sum1 = 0.0f;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      float& a = scores[i + 2 * half];
      float& b = scores[i + 2 * half + 1];
      a = exp2_approx(fmaf(a, scale_log2, -offset));
      b = exp2_approx(fmaf(b, scale_log2, -offset));
      sum0 += a;
      sum1 += b;
    }
    state.sum[half] = state.sum[half] * factor[half] + (sum0 + sum1);
  }
}

__device__ __forceinline__ void pack_probabilities(const float (&scores)[kScores],
                                                   uint32 (&packed)[kPacked]) {
  if constexpr (kBytes) {
    // Columns 8i + 2t + e of a thread become bytes 4t + 2i + e: the order in which V is stored.
#pragma unroll
    for (int step = 0; step < kTileKeys / 32; ++step) {
      const float* s = scores + 16 * step;
      packed[4 * step] = pack_e4m3(s[0], s[1], s[4], s[5]);
      packed[4 * step + 1] = pack_e4m3(s[2], s[3], s[6], s[7]);
      packed[4 * step + 2] = pack_e4m3(s[8], s[9], s[12], s[13]);
      packed[4 * step + 3] = pack_e4m3(s[10], s[11], s[14], s[15]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPacked; ++i) {
      packed[i] = pack_halves<kElement>(scores[2 * i], scores[2 * i + 1]);
    }
  }
}

__device__ __forceinline__ void rescale(float (&outputs)[kOutputs], const float (&factor)[2]) {
  if (!__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kOutputs; i += 4) {
    outputs[i] *= factor[0];
    outputs[i + 1] *= factor[0];
    outputs[i + 2] *= factor[1];
    outputs[i + 3] *= factor[1];
  }
}

__device__ __forceinline__ void clear(float (&sums)[kOutputs]) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) sums[i] = 0.0f;
}

__device__ __forceinline__ void promote(float (&outputs)[kOutputs], float (&sums)[kOutputs]) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) outputs[i] += sums[i];
  clear(sums);
}

// Warpgroups take turns at issuing matrix instructions, so that one's softmax runs under another's.
__device__ __forceinline__ void turn_begin(int warpgroup) {
  if constexpr (kOrdered) named_sync(1 + warpgroup, 256);
}

__device__ __forceinline__ void turn_end(int warpgroup) {
  if constexpr (kOrdered) named_arrive(1 + (warpgroup + 1) % kWarpgroups, 256);
}

__device__ __forceinline__ void release(uint64* barrier) {
  __syncwarp();
  if (kChecked || threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// The keys of a block are read before its values, one ring position apart.
struct Consumer {
  Barriers* barriers;
  uint32 queries;
  uint32 keys;
  uint32 values;
  int warpgroup;
  Ring ring;
  uint64* pending_release;  // the query buffer whose outputs may still be leaving

  __device__ __forceinline__ void release_queries() {
    if ((kChecked || threadIdx.x % 128 == 0) && pending_release != nullptr) {
      store_wait_source_read();
      barrier_arrive(pending_release);
    }
    pending_release = nullptr;
  }

  __device__ __forceinline__ void start_scores(float (&scores)[kScores]) {
    issue_scores(scores, queries, keys + ring.stage * kStageBytes);
  }

  __device__ __forceinline__ void wait_keys() {
    barrier_wait(&barriers->key_full[ring.stage], ring.phase);
  }

  __device__ __forceinline__ void finish_scores(float (&scores)[kScores]) {
    pin(scores);
    int valid = barriers->key_valid[ring.stage];
    release(&barriers->key_empty[ring.stage]);
    if constexpr (kRestAlike) {
      if (valid < 0) {
        valid = -valid;
        raise_last(scores, valid, barriers->rest_score);
      }
    }
    if (valid < kTileKeys) mask_scores(scores, valid);
  }

  __device__ __forceinline__ void start_outputs(float (&outputs)[kOutputs],
                                                const uint32 (&probabilities)[kPacked],
                                                const Ring& at) {
    barrier_wait(&barriers->value_full[at.stage], at.phase);
    issue_outputs(outputs, probabilities, values + at.stage * kStageBytes);
  }

  __device__ __forceinline__ void finish_outputs(float (&outputs)[kOutputs],
                                                 uint32 (&probabilities)[kPacked],
                                                 const Ring& at) {
    pin(outputs);
    pin(probabilities);
    release(&barriers->value_empty[at.stage]);
  }

  __device__ __forceinline__ void attend(int blocks, float (&outputs)[kOutputs], RowState& state,
                                         const RowScales& scales) {
    float scores[kScores];
    uint32 probabilities[kPacked];
    float factor[2];
    float few_blocks[kOutputs];
    float(&latest)[kOutputs] = kPromotedBlocks ? few_blocks : outputs;
    if constexpr (kPromotedBlocks) clear(few_blocks);
    wait_keys();
    turn_begin(warpgroup);
    start_scores(scores);
    turn_end(warpgroup);
    release_queries();
    wgmma_wait<0>();
    finish_scores(scores);
    softmax_step(scores, state, factor, scales);
    pack_probabilities(scores, probabilities);
#pragma unroll 1
    for (int block = 1; block < blocks; ++block) {
      const Ring previous = ring;
      ring.advance();
      if constexpr (kPipelined) {
        wait_keys();
        turn_begin(warpgroup);
        start_scores(scores);
        start_outputs(latest, probabilities, previous);
        turn_end(warpgroup);
        wgmma_wait<1>();
        finish_scores(scores);
        softmax_step(scores, state, factor, scales);
        wgmma_wait<0>();
        finish_outputs(latest, probabilities, previous);
      } else {
        turn_begin(warpgroup);
        start_outputs(latest, probabilities, previous);
        wgmma_wait<0>();
        finish_outputs(latest, probabilities, previous);
        wait_keys();
        start_scores(scores);
        turn_end(warpgroup);
        wgmma_wait<0>();
        finish_scores(scores);
        softmax_step(scores, state, factor, scales);
      }
      if constexpr (kPromotedBlocks) {
        if (block % kPromotedBlocks == 0) promote(outputs, few_blocks);
        rescale(few_blocks, factor);
      }
      rescale(outputs, factor);
      pack_probabilities(scores, probabilities);
    }
    start_outputs(latest, probabilities, ring);
    wgmma_wait<0>();
    finish_outputs(latest, probabilities, ring);
    if constexpr (kPromotedBlocks) promote(outputs, few_blocks);
    ring.advance();
  }

  // A warpgroup without rows of its own keeps the others' barriers moving.
  __device__ __forceinline__ void stand_by(int blocks) {
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      wait_keys();
      turn_begin(warpgroup);
      turn_end(warpgroup);
      release(&barriers->key_empty[ring.stage]);
      barrier_wait(&barriers->value_full[ring.stage], ring.phase);
      release(&barriers->value_empty[ring.stage]);
      ring.advance();
    }
    release_queries();
    named_sync(1 + kWarpgroups + warpgroup, 128);
  }
};

}  // namespace
