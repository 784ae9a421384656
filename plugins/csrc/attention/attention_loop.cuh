// What surrounds a tile's arithmetic: the sums of tiles that several thread blocks share, and the loop
// over a thread block's segments.
#pragma once

#include "attention/attention_tile.cuh"
#if LL_HALVES
#include "attention/attention_halves.cuh"
#endif

namespace {

constexpr int kPartialVectors = kOutputs / 4 + 1;

__device__ __forceinline__ float4* partial_of(const Problem& problem, int slot, int warpgroup) {
  return problem.partials + (slot * kWarpgroups + warpgroup) * kPartialVectors * 128 +
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
__device__ __forceinline__ void sum_partials(const Problem& problem, const Segment& segment,
                                             int warpgroup,
                                             float (&outputs)[kOutputs], RowState& state,
                                             const RowScales& scales) {
  float maximum[2] = {negative_infinity(), negative_infinity()};
  for (int share = 0; share < segment.shares; ++share) {
    const float4* source = partial_of(problem, partial_slot(segment, share), warpgroup);
    const float4 rows = __ldcg(source + kOutputs / 4 * 128);
    maximum[0] = fmaxf(maximum[0], rows.x);
    maximum[1] = fmaxf(maximum[1], rows.y);
  }
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) outputs[i] = 0.0f;
  state.sum[0] = state.sum[1] = 0.0f;
  for (int share = 0; share < segment.shares; ++share) {
    const float4* source = partial_of(problem, partial_slot(segment, share), warpgroup);
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
__device__ __forceinline__ bool gather_shares(const Problem& problem, const Segment& segment,
                                              Barriers* barriers, int warpgroup, float (&outputs)[kOutputs],
                                              RowState& state, const RowScales& scales) {
  const int id = 1 + kWarpgroups + warpgroup;
  write_partial(partial_of(problem, partial_slot(segment, blockIdx.x - segment.first_sharer), warpgroup),
                outputs, state);
  __threadfence();
  named_sync(id, 128);
  if (threadIdx.x % 128 == 0) {
    uint32* counter = problem.arrivals + segment.remainder * kWarpgroups + warpgroup;
    const bool last = atomicAdd(counter, 1u) == static_cast<uint32>(segment.shares - 1);
    if (last) *counter = 0;  // ready for the next launch
    __threadfence();
    barriers->is_last[warpgroup] = last;
  }
  named_sync(id, 128);
  const bool last = barriers->is_last[warpgroup];
  if (last) {
    sum_partials(problem, segment, warpgroup, outputs, state, scales);
  }
  named_sync(id, 128);
  return last;
}

__device__ __forceinline__ RowScales row_scales(const Problem& problem, const Segment& segment,
                                                int warpgroup) {
  RowScales scales;
  scales.log2[0] = problem.scale_log2;
  if constexpr (kBytes) {
    const TilePlace place(problem, segment);
    const float* q_scale = problem.q_scale + place.batch * problem.q_scale_batch_stride +
                           place.head * problem.q_scale_head_stride;
    const float shared_scale = problem.scale_log2 * problem.k_scale[place.head];
    const int row = place.row + warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = smaller(row + 8 * half, problem.queries - 1);
      scales.log2[half] = shared_scale * q_scale[token * problem.q_scale_token_stride];
    }
  }
  return scales;
}

__device__ __forceinline__ bool has_rows(const Problem& problem, const Segment& segment,
                                         int warpgroup) {
  return warpgroup * 64 < segment.rows &&
         TilePlace(problem, segment).row + warpgroup * 64 < problem.queries;
}

__device__ __forceinline__ void invert_sums(const RowState& state, float scale, float (&inverse)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(state.sum[half]);
    inverse[half] = sum > 0.0f ? scale / sum : (sum == sum ? 0.0f : sum);
  }
}

__device__ __forceinline__ void stage_bytes(uint8* staging, int row,
                                            const float (&outputs)[kOutputs],
                                            const float (&inverse)[2]) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    uint8* at = staging + row * kPanelBytes + ((i / 2) ^ (row & 7)) * 16 + i % 2 * 8 + pair;
    const uint32 packed =
        pack_e4m3(outputs[4 * i] * inverse[0], outputs[4 * i + 1] * inverse[0],
                  outputs[4 * i + 2] * inverse[1], outputs[4 * i + 3] * inverse[1]);
    *reinterpret_cast<uint16*>(at) = static_cast<uint16>(packed);
    *reinterpret_cast<uint16*>(at + 8 * kPanelBytes) = static_cast<uint16>(packed >> 16);
  }
}

// Normalizes, rounds and lays the tile into shared memory, swizzled like the queries were.
__device__ __forceinline__ void stage_outputs(uint8* staging, int warpgroup,
                                              const float (&outputs)[kOutputs],
                                              const float (&inverse)[2]) {
  const int thread = threadIdx.x % 128;
  const int row = warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4;
  // With a staging area of its own, the previous tile must have left it.
  if constexpr (kBytes) named_sync(1 + kWarpgroups + warpgroup, 128);
  if constexpr (kOutE4M3) {
    stage_bytes(staging, row, outputs, inverse);
    return;
  }
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    uint8* panel = staging + i / 8 * kTileRows * kPanelBytes;
    const int chunk = ((i % 8) ^ (row & 7)) * 16 + thread % 4 * 4;
    *reinterpret_cast<uint32*>(panel + row * kPanelBytes + chunk) =
        pack_halves<kOutElement>(outputs[4 * i] * inverse[0], outputs[4 * i + 1] * inverse[0]);
    *reinterpret_cast<uint32*>(panel + (row + 8) * kPanelBytes + chunk) =
        pack_halves<kOutElement>(outputs[4 * i + 2] * inverse[1], outputs[4 * i + 3] * inverse[1]);
  }
}

// `write` takes (place, query memory, warpgroup, outputs, inverse row sums).
template <typename Write>
__device__ __forceinline__ void consume(const Problem& problem, uint8* queries, uint32 keys,
                                        uint32 values, Barriers* barriers,
                                        int warpgroup, const Write& write) {
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
    if (!has_rows(problem, segment, warpgroup)) {
      consumer.stand_by(segment.blocks);
      consumer.pending_release = release_when_stored;
      continue;
    }
    const RowScales scales = row_scales(problem, segment, warpgroup);
    float outputs[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) outputs[i] = 0.0f;
    RowState state;
#if LL_HALVES
    if (segment.blocks > 0) attend_in_halves(consumer, segment.blocks, outputs, state, scales);
#else
    if (segment.blocks > 0) consumer.attend(segment.blocks, outputs, state, scales);
#endif
    consumer.release_queries();  // also when there were no keys
    const bool finished = segment.shares == 1 || gather_shares(problem, segment, barriers, warpgroup,
                                                               outputs, state, scales);
    if (finished) {
      const TilePlace place(problem, segment);
      float inverse[2];
      const float value_scale = kBytes ? problem.v_scale[place.head] : 1.0f;
      invert_sums(state, kOutE4M3 ? value_scale * problem.out_factor : value_scale, inverse);
      write(place, tile_queries, warpgroup, outputs, inverse);
    }
    consumer.pending_release = release_when_stored;
  }
  if (threadIdx.x % 128 == 0) store_wait_all();
}

}  // namespace
