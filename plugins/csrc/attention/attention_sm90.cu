// Sink-window attention for Hopper: softmax(scale Q K^T) V over one to three pieces of keys and
// values, each with a valid length that is read on the device.
//
// One producer warpgroup keeps the copy engine busy; two or three consumer warpgroups of 64 query
// rows each run the tensor cores and the softmax.
#include "attention/attention_loop.cuh"

namespace {

struct Params {
  TensorMap q;
  TensorMap out;
  TensorMap k[kMaxPieces];
  TensorMap v[kMaxPieces];
  Problem problem;
};
static_assert(sizeof(Params) == 1152, "as plugins/attention/hopper.py lays it out");

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
    const TilePlace place(params.problem, segment);
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
  if constexpr (kRestAlike) {
    const Problem& problem = params.problem;
    if (leader) {
      barriers->rest_score =
          score_of_rest(problem.capacities[0], pieces.valid[0], problem.scale_log2);
    }
  }
  while (schedule.next(segment)) {
    const TilePlace place(params.problem, segment);
    KeyCursor<kTileKeys> cursor(pieces, segment.first_block);
    for (int block = 0; block < segment.blocks; ++block) {
      const int valid = cursor.valid_rows(pieces);
      uint8* value_stage = values + ring.stage * kStageBytes;
      barrier_wait(&barriers->key_empty[ring.stage], ring.phase ^ 1);
      if (leader) {
        const bool ends = kRestAlike && segment.first_block + block + 1 == pieces.total_blocks;
        barriers->key_valid[ring.stage] = ends ? -valid : valid;
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

// The tile leaves through the shared memory of this warpgroup's own queries.
__device__ __forceinline__ void write_outputs(const Params& params, const TilePlace& place,
                                              uint8* staging, int warpgroup,
                                              const float (&outputs)[kOutputs],
                                              const float (&inverse)[2]) {
  stage_outputs(staging, warpgroup, outputs, inverse);
  fence_async_proxy();
  named_sync(1 + kWarpgroups + warpgroup, 128);
  if (threadIdx.x % 128 == 0) {
#pragma unroll
    for (int panel = 0; panel < kOutPanels; ++panel) {
      store_box(&params.out, staging + (panel * kTileRows + warpgroup * 64) * kPanelBytes,
                panel * kPanelBytes / kOutElementBytes, place.head, place.row + warpgroup * 64, place.batch);
    }
    store_commit();
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention_sm90(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8 shared[];
  uint8* keys = shared;
  uint8* values = keys + kStages * kStageBytes;
  uint8* queries = values + kStages * kStageBytes;
  // Outputs leave through the memory of their queries, or beside it where 8-bit queries are too small.
  uint8* staging = queries + kQueryBuffers * kQueryBytes;
  Barriers* barriers = reinterpret_cast<Barriers*>(staging + (kBytes ? kOutBytes : 0));

  if (threadIdx.x == 0) init_barriers(barriers, 1);
  __syncthreads();
  const Problem& problem = params.problem;
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (role == 0) {
    shrink_registers<kProducerRegisters>();
    if (threadIdx.x >= 64) return;
    const PieceLengths pieces = read_lengths<kTileKeys>(problem.lengths, problem.capacities);
    const Schedule<kWarpgroups> schedule(count_tiles(problem), pieces.total_blocks,
                                         problem.partials != nullptr);
    if (threadIdx.x < 32) {
      load_pieces(params, pieces, schedule, keys, values, barriers);
    } else if (threadIdx.x == 32) {
      load_queries(params, schedule, queries, barriers);
    }
  } else {
    grow_registers<kConsumerRegisters>();
    consume(problem, queries, shared_address(keys), shared_address(values), barriers, role - 1,
            [&](const TilePlace& place, uint8* tile_queries, int warpgroup,
                const float(&outputs)[kOutputs], const float(&inverse)[2]) {
              write_outputs(params, place, kBytes ? staging : tile_queries, warpgroup, outputs,
                            inverse);
            });
  }
}
