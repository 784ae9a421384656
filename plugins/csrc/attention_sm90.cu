// Sink-window attention for Hopper: softmax(scale Q K^T) V over one to three pieces of keys and
// values, each with a valid length that is read on the device.
//
// One producer warpgroup keeps the copy engine busy; two or three consumer warpgroups of 64 query
// rows each run the tensor cores and the softmax. The file is compiled once for each combination of
// the LL_ constants (see plugins/variants.py).
#include "hopper.cuh"
#include "schedule.cuh"
#include "wgmma.cuh"

#ifndef LL_ELEMENT
#define LL_ELEMENT 0
#define LL_HEAD_DIM 128
#define LL_WARPGROUPS 3
#define LL_TILE_KEYS 96
#define LL_STAGES 3
#define LL_PIPELINED 1
#define LL_ORDERED 1
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

constexpr int kPanelBytes = 128;  // the width of the swizzle: tiles are stored in panels this wide
constexpr int kRowPanels = kHeadDim * kElementBytes / kPanelBytes;
constexpr int kOutPanels = kHeadDim * 2 / kPanelBytes;
constexpr int kStepKeys = 32 / kElementBytes;  // keys per matrix instruction in P V
constexpr int kQueryBytes = kTileRows * kHeadDim * kElementBytes;
constexpr int kOutBytes = kTileRows * kHeadDim * 2;
constexpr int kStageBytes = kTileKeys * kHeadDim * kElementBytes;
constexpr int kQueryBuffers = 2;
constexpr int kThreads = 128 * (kWarpgroups + 1);
constexpr int kConsumerRegisters = kWarpgroups == 3 ? 160 : 240;
// What the launch grants the whole block (168 or 128 a thread) bounds the sum over warpgroups.
constexpr int kProducerRegisters = kWarpgroups == 3 ? 32 : 24;

static_assert(kHeadDim * kElementBytes % kPanelBytes == 0, "a row is whole panels");

// 8-bit values are stored transposed, in panels of as many keys as the swizzle and the tile allow.
constexpr int kValuePanel = kTileKeys % 128 == 0 ? 128 : kTileKeys % 64 == 0 ? 64 : 32;
static_assert(!kBytes || kTileKeys % kValuePanel == 0, "a tile is whole panels");

// How far (in powers of two) a row's maximum may grow before its sums are rescaled, and the power of
// two that probabilities are multiplied with before they are rounded to 8 bits.
constexpr float kRescaleLimit = kBytes ? 4.0f : 8.0f;
constexpr float kProbabilityExponent = kBytes ? 4.0f : 0.0f;
constexpr float kIntegerBias = 12582912.0f;  // 1.5 x 2^23: see Wgmma<kInt8, N>

struct Params {
  TensorMap q;
  TensorMap out;
  TensorMap k[kMaxPieces];
  TensorMap v[kMaxPieces];
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
};

struct Barriers {
  uint64 query_full[kQueryBuffers];
  uint64 query_empty[kQueryBuffers];
  uint64 tail;
  uint64 key_full[kStages];
  uint64 key_empty[kStages];
  uint64 value_full[kStages];
  uint64 value_empty[kStages];
  int key_valid[kStages];
  int is_last[kWarpgroups];
  Segment segments[kQueryBuffers];  // what the queries in shared memory belong to
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

struct TilePlace {
  int batch;
  int head;
  int row;
  __device__ __forceinline__ TilePlace(const Params& params, const Segment& segment) {
    const int tiles_per_head = ceil_div(params.queries, kTileRows);
    const int head_index = segment.tile / tiles_per_head;
    row = (segment.tile - head_index * tiles_per_head) * kTileRows + segment.first_row;
    batch = head_index / params.heads;
    head = head_index - batch * params.heads;
  }
};

__device__ __forceinline__ int count_tiles(const Params& params) {
  return params.batch * params.heads * ceil_div(params.queries, kTileRows);
}

// ------------------------------------------------------------------------------------- producer

__device__ __forceinline__ void load_queries(const Params& params, Schedule<kWarpgroups> schedule,
                                             uint8* queries, Barriers* barriers) {
  Segment segment;
  QueryRing ring;
  while (true) {
    if (!schedule.next(segment)) segment.tile = -1;
    barrier_wait(&barriers->query_empty[ring.stage], ring.phase ^ 1);
    barriers->segments[ring.stage] = segment;
    uint64* full = &barriers->query_full[ring.stage];
    if (segment.tile < 0) {
      barrier_arrive(full);
      return;
    }
    const TilePlace place(params, segment);
    barrier_expect_bytes(full, kQueryBytes);
#pragma unroll
    for (int panel = 0; panel < kRowPanels; ++panel) {
      load_box(queries + ring.stage * kQueryBytes + panel * kTileRows * kPanelBytes, &params.q, full,
               panel * kPanelBytes / kElementBytes, place.head, place.row, place.batch);
    }
    ring.advance();
  }
}

__device__ __forceinline__ void load_keys(const Params& params, uint8* stage, uint64* full,
                                          int piece, int row, const TilePlace& place) {
  barrier_expect_bytes(full, kStageBytes);
#pragma unroll
  for (int panel = 0; panel < kRowPanels; ++panel) {
    load_box(stage + panel * kTileKeys * kPanelBytes, &params.k[piece], full,
             panel * kPanelBytes / kElementBytes, place.head, row, place.batch);
  }
}

__device__ __forceinline__ void load_values(const Params& params, uint8* stage, uint64* full,
                                            int piece, int row, const TilePlace& place) {
  barrier_expect_bytes(full, kStageBytes);
  if constexpr (kBytes) {
#pragma unroll
    for (int panel = 0; panel < kTileKeys / kValuePanel; ++panel) {
      load_box(stage + panel * kHeadDim * kValuePanel, &params.v[piece], full,
               row + panel * kValuePanel, 0, place.head, place.batch);
    }
  } else {
#pragma unroll
    for (int panel = 0; panel < kRowPanels; ++panel) {
      load_box(stage + panel * kTileKeys * kPanelBytes, &params.v[piece], full,
               panel * kPanelBytes / kElementBytes, place.head, row, place.batch);
    }
  }
}

// What lies beyond the valid length may be anything, NaN included, and 0 x NaN is NaN.
__device__ __forceinline__ void clear_invalid_values(uint8* stage, int valid) {
  const int lane = threadIdx.x % 32;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  if constexpr (kBytes) {
    // 16 keys to a chunk; inside a chunk, key 8i + 2t + e lies at byte 4t + 2i + e.
    constexpr int kChunks = kValuePanel / 16;
    for (int row = lane; row < kHeadDim * (kTileKeys / kValuePanel); row += 32) {
      uint8* line = stage + row * kValuePanel;
      const int panel_valid = valid - row / kHeadDim * kValuePanel;
      for (int chunk = larger(0, panel_valid / 16); chunk < kChunks; ++chunk) {
        uint8* target = line + ((chunk ^ (row / (8 / kChunks) % kChunks)) << 4);
        const int kept = panel_valid - chunk * 16;
        if (kept <= 0) {
          *reinterpret_cast<uint4*>(target) = zero;
          continue;
        }
        for (int key = kept; key < 16; ++key) {
          target[((key & 7) >> 1) * 4 + (key >> 3) * 2 + (key & 1)] = 0;
        }
      }
    }
  } else {
    const int chunks = (kTileKeys - valid) * (kPanelBytes / 16);
#pragma unroll
    for (int panel = 0; panel < kRowPanels; ++panel) {
      uint4* rows = reinterpret_cast<uint4*>(stage + (panel * kTileKeys + valid) * kPanelBytes);
      for (int i = lane; i < chunks; i += 32) rows[i] = zero;
    }
  }
}

__device__ __forceinline__ void load_pieces(const Params& params, const PieceLengths& pieces,
                                            Schedule<kWarpgroups> schedule, uint8* keys, uint8* values,
                                            Barriers* barriers) {
  const bool leader = threadIdx.x % 32 == 0;
  Segment segment;
  Ring ring;
  uint32 tail_phase = 0;
  while (schedule.next(segment)) {
    const TilePlace place(params, segment);
    KeyCursor<kTileKeys> cursor(pieces, segment.first_block);
    for (int block = 0; block < segment.blocks; ++block) {
      const int valid = cursor.valid_rows(pieces);
      uint8* value_stage = values + ring.stage * kStageBytes;
      barrier_wait(&barriers->key_empty[ring.stage], ring.phase ^ 1);
      if (leader) {
        barriers->key_valid[ring.stage] = valid;
        load_keys(params, keys + ring.stage * kStageBytes, &barriers->key_full[ring.stage],
                  cursor.piece, cursor.row, place);
      }
      barrier_wait(&barriers->value_empty[ring.stage], ring.phase ^ 1);
      if (valid == kTileKeys) {
        if (leader) {
          load_values(params, value_stage, &barriers->value_full[ring.stage], cursor.piece,
                      cursor.row, place);
        }
      } else {
        if (leader) {
          load_values(params, value_stage, &barriers->tail, cursor.piece, cursor.row, place);
        }
        __syncwarp();
        barrier_wait(&barriers->tail, tail_phase);
        tail_phase ^= 1;
        clear_invalid_values(value_stage, valid);
        fence_async_proxy();
        __syncwarp();
        if (leader) barrier_arrive(&barriers->value_full[ring.stage]);
      }
      __syncwarp();
      ring.advance();
      cursor.advance(pieces);
    }
  }
}

// ------------------------------------------------------------------------------------- consumer

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

// Warpgroups take turns at issuing matrix instructions, so that one's softmax runs under another's.
__device__ __forceinline__ void turn_begin(int warpgroup) {
  if constexpr (kOrdered) named_sync(1 + warpgroup, 256);
}

__device__ __forceinline__ void turn_end(int warpgroup) {
  if constexpr (kOrdered) named_arrive(1 + (warpgroup + 1) % kWarpgroups, 256);
}

__device__ __forceinline__ void release(uint64* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
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
    if (threadIdx.x % 128 == 0 && pending_release != nullptr) {
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
    const int valid = barriers->key_valid[ring.stage];
    release(&barriers->key_empty[ring.stage]);
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
        start_outputs(outputs, probabilities, previous);
        turn_end(warpgroup);
        wgmma_wait<1>();
        finish_scores(scores);
        softmax_step(scores, state, factor, scales);
        wgmma_wait<0>();
        finish_outputs(outputs, probabilities, previous);
      } else {
        turn_begin(warpgroup);
        start_outputs(outputs, probabilities, previous);
        wgmma_wait<0>();
        finish_outputs(outputs, probabilities, previous);
        wait_keys();
        start_scores(scores);
        turn_end(warpgroup);
        wgmma_wait<0>();
        finish_scores(scores);
        softmax_step(scores, state, factor, scales);
      }
      rescale(outputs, factor);
      pack_probabilities(scores, probabilities);
    }
    start_outputs(outputs, probabilities, ring);
    wgmma_wait<0>();
    finish_outputs(outputs, probabilities, ring);
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
  }
};

constexpr int kPartialVectors = kOutputs / 4 + 1;

__device__ __forceinline__ float4* partial_of(const Params& params, int slot, int warpgroup) {
  return params.partials + (slot * kWarpgroups + warpgroup) * kPartialVectors * 128 +
         threadIdx.x % 128;
}

__device__ __forceinline__ void write_partial(float4* target, const float (&outputs)[kOutputs],
                                              const RowState& state) {
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    target[i * 128] = make_float4(outputs[4 * i], outputs[4 * i + 1], outputs[4 * i + 2],
                                  outputs[4 * i + 3]);
  }
  target[kOutputs / 4 * 128] =
      make_float4(state.maximum[0], state.maximum[1], state.sum[0], state.sum[1]);
}

// The last thread block to arrive sums all shares in the order of the keys, whoever it is.
__device__ __forceinline__ void sum_partials(const Params& params, const Segment& segment,
                                             int warpgroup,
                                             float (&outputs)[kOutputs], RowState& state,
                                             const RowScales& scales) {
  float maximum[2] = {negative_infinity(), negative_infinity()};
  for (int share = 0; share < segment.shares; ++share) {
    const float4* source = partial_of(params, partial_slot(segment, share), warpgroup);
    const float4 rows = __ldcg(source + kOutputs / 4 * 128);
    maximum[0] = fmaxf(maximum[0], rows.x);
    maximum[1] = fmaxf(maximum[1], rows.y);
  }
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) outputs[i] = 0.0f;
  state.sum[0] = state.sum[1] = 0.0f;
  for (int share = 0; share < segment.shares; ++share) {
    const float4* source = partial_of(params, partial_slot(segment, share), warpgroup);
    const float4 rows = __ldcg(source + kOutputs / 4 * 128);
    const float factor0 = exp2_approx((rows.x - maximum[0]) * scales[0]);
    const float factor1 = exp2_approx((rows.y - maximum[1]) * scales[1]);
    state.sum[0] = fmaf(rows.z, factor0, state.sum[0]);
    state.sum[1] = fmaf(rows.w, factor1, state.sum[1]);
#pragma unroll
    for (int i = 0; i < kOutputs / 4; ++i) {
      const float4 part = __ldcg(source + i * 128);
      outputs[4 * i] = fmaf(part.x, factor0, outputs[4 * i]);
      outputs[4 * i + 1] = fmaf(part.y, factor0, outputs[4 * i + 1]);
      outputs[4 * i + 2] = fmaf(part.z, factor1, outputs[4 * i + 2]);
      outputs[4 * i + 3] = fmaf(part.w, factor1, outputs[4 * i + 3]);
    }
  }
}

// Returns whether this warpgroup now holds the finished tile.
__device__ __forceinline__ bool gather_shares(const Params& params, const Segment& segment,
                                              Barriers* barriers, int warpgroup, float (&outputs)[kOutputs],
                                              RowState& state, const RowScales& scales) {
  const int id = 1 + kWarpgroups + warpgroup;
  write_partial(partial_of(params, partial_slot(segment, blockIdx.x - segment.first_sharer), warpgroup),
                outputs, state);
  __threadfence();
  named_sync(id, 128);
  if (threadIdx.x % 128 == 0) {
    uint32* counter = params.arrivals + segment.remainder * kWarpgroups + warpgroup;
    const bool last = atomicAdd(counter, 1u) == static_cast<uint32>(segment.shares - 1);
    if (last) *counter = 0;  // ready for the next launch
    __threadfence();
    barriers->is_last[warpgroup] = last;
  }
  named_sync(id, 128);
  const bool last = barriers->is_last[warpgroup];
  if (last) {
    sum_partials(params, segment, warpgroup, outputs, state, scales);
  }
  named_sync(id, 128);
  return last;
}

// The tile leaves through the shared memory of this warpgroup's own queries.
__device__ __forceinline__ void write_outputs(const Params& params, const TilePlace& place,
                                              uint8* staging, int warpgroup,
                                              const float (&outputs)[kOutputs],
                                              const RowState& state, float value_scale) {
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(state.sum[half]);
    inverse[half] = sum > 0.0f ? value_scale / sum : (sum == sum ? 0.0f : sum);
  }
  const int thread = threadIdx.x % 128;
  const int row = warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4;
  constexpr int kOutElement = kBytes ? static_cast<int>(kBfloat16) : kElement;
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    uint8* panel = staging + i / 8 * kTileRows * kPanelBytes;
    const int chunk = ((i % 8) ^ (row & 7)) * 16 + thread % 4 * 4;
    *reinterpret_cast<uint32*>(panel + row * kPanelBytes + chunk) =
        pack_halves<kOutElement>(outputs[4 * i] * inverse[0], outputs[4 * i + 1] * inverse[0]);
    *reinterpret_cast<uint32*>(panel + (row + 8) * kPanelBytes + chunk) =
        pack_halves<kOutElement>(outputs[4 * i + 2] * inverse[1], outputs[4 * i + 3] * inverse[1]);
  }
  fence_async_proxy();
  named_sync(1 + kWarpgroups + warpgroup, 128);
  if (thread == 0) {
#pragma unroll
    for (int panel = 0; panel < kOutPanels; ++panel) {
      store_box(&params.out, staging + (panel * kTileRows + warpgroup * 64) * kPanelBytes,
                panel * 64, place.head, place.row + warpgroup * 64, place.batch);
    }
    store_commit();
  }
}

__device__ __forceinline__ RowScales row_scales(const Params& params, const Segment& segment,
                                                int warpgroup) {
  RowScales scales;
  scales.log2[0] = params.scale_log2;
  if constexpr (kBytes) {
    const TilePlace place(params, segment);
    const float* q_scale = params.q_scale + place.batch * params.q_scale_batch_stride +
                           place.head * params.q_scale_head_stride;
    const float shared_scale = params.scale_log2 * params.k_scale[place.head];
    const int row = place.row + warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = smaller(row + 8 * half, params.queries - 1);
      scales.log2[half] = shared_scale * q_scale[token * params.q_scale_token_stride];
    }
  }
  return scales;
}

__device__ __forceinline__ bool has_rows(const Params& params, const Segment& segment,
                                         int warpgroup) {
  return warpgroup * 64 < segment.rows &&
         TilePlace(params, segment).row + warpgroup * 64 < params.queries;
}

__device__ __forceinline__ void consume(const Params& params, uint8* queries, uint8* staging,
                                        uint32 keys, uint32 values, Barriers* barriers,
                                        int warpgroup) {
  Consumer consumer{barriers, 0, keys, values, warpgroup, Ring{}, nullptr};
  QueryRing query_ring;
  if (kOrdered && warpgroup == kWarpgroups - 1) turn_end(warpgroup);
#pragma unroll 1
  while (true) {
    barrier_wait(&barriers->query_full[query_ring.stage], query_ring.phase);
    const Segment& segment = barriers->segments[query_ring.stage];
    if (segment.tile < 0) break;
    uint8* tile_queries = queries + query_ring.stage * kQueryBytes;
    consumer.queries = shared_address(tile_queries) + warpgroup * 64 * kPanelBytes;
    uint64* release_when_stored = &barriers->query_empty[query_ring.stage];
    query_ring.advance();
    if (!has_rows(params, segment, warpgroup)) {
      consumer.stand_by(segment.blocks);
      consumer.pending_release = release_when_stored;
      continue;
    }
    const RowScales scales = row_scales(params, segment, warpgroup);
    float outputs[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) outputs[i] = 0.0f;
    RowState state;
    if (segment.blocks > 0) consumer.attend(segment.blocks, outputs, state, scales);
    consumer.release_queries();  // also when there were no keys
    const bool finished = segment.shares == 1 || gather_shares(params, segment, barriers, warpgroup,
                                                               outputs, state, scales);
    if (finished) {
      const TilePlace place(params, segment);
      const float value_scale = kBytes ? params.v_scale[place.head] : 1.0f;
      write_outputs(params, place, kBytes ? staging : tile_queries, warpgroup, outputs, state,
                    value_scale);
    }
    consumer.pending_release = release_when_stored;
  }
  if (threadIdx.x % 128 == 0) store_wait_all();
}

__device__ __forceinline__ void init_barriers(Barriers* barriers) {
  for (int buffer = 0; buffer < kQueryBuffers; ++buffer) {
    barrier_init(&barriers->query_full[buffer], 1);
    barrier_init(&barriers->query_empty[buffer], kWarpgroups);
  }
  barrier_init(&barriers->tail, 1);
  for (int stage = 0; stage < kStages; ++stage) {
    barrier_init(&barriers->key_full[stage], 1);
    barrier_init(&barriers->value_full[stage], 1);
    barrier_init(&barriers->key_empty[stage], 4 * kWarpgroups);
    barrier_init(&barriers->value_empty[stage], 4 * kWarpgroups);
  }
  fence_barrier_init();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    sink_window_attention(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8 shared[];
  uint8* keys = shared;
  uint8* values = keys + kStages * kStageBytes;
  uint8* queries = values + kStages * kStageBytes;
  // Outputs leave through the memory of their queries, or beside it where 8-bit queries are too small.
  uint8* staging = queries + kQueryBuffers * kQueryBytes;
  Barriers* barriers = reinterpret_cast<Barriers*>(staging + (kBytes ? kOutBytes : 0));

  if (threadIdx.x == 0) init_barriers(barriers);
  __syncthreads();
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (role == 0) {
    shrink_registers<kProducerRegisters>();
    if (threadIdx.x >= 64) return;
    const PieceLengths pieces = read_lengths<kTileKeys>(params.lengths, params.capacities);
    const Schedule<kWarpgroups> schedule(count_tiles(params), pieces.total_blocks, params.partials != nullptr);
    if (threadIdx.x < 32) {
      load_pieces(params, pieces, schedule, keys, values, barriers);
    } else if (threadIdx.x == 32) {
      load_queries(params, schedule, queries, barriers);
    }
  } else {
    grow_registers<kConsumerRegisters>();
    consume(params, queries, staging, shared_address(keys), shared_address(values), barriers,
            role - 1);
  }
}
