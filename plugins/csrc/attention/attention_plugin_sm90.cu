// Sink-window attention for Hopper as a TensorRT ahead-of-time plugin launches it: the arguments are
// tensor pointers and integers only, so there are no tensor maps, and the producer warpgroup copies
// sixteen bytes a thread instead of whole boxes. The sums of shared tiles go through a second output
// that nobody reads. Its contents are arbitrary before each launch, so the counters of who has arrived
// are kept with the code: see `claim_counters`.
//
// Keys and values: the valid prefix of the cache, then this pass's own. LL_SCALE_BITS are the bits of
// the float32 scale x log2(e).
//
// In 8 bits queries and keys are int8, with float32 scales [batch, queries, heads] and [heads], and
// values are E4M3 as `transposed_values_plugin` lays them out, in rows of a pitch.
#include "attention/attention_loop.cuh"
#include "common/async_copy.cuh"

#ifndef LL_SCALE_BITS
#define LL_SCALE_BITS 0x3e029396
#endif

namespace {

constexpr int kRowBytes = kHeadDim * kElementBytes;
constexpr int kRowChunks = kRowBytes / 16;
constexpr int kRowsPerPass = 128 / kRowChunks;
constexpr int kOutRowBytes = kHeadDim * kOutElementBytes;
constexpr int kOutChunks = kOutRowBytes / 16;
constexpr int kOutRowsPerPass = 128 / kOutChunks;
static_assert(kTileKeys % kRowsPerPass == 0, "a tile is whole passes");
static_assert(!kBytes || kTileKeys == kPanelBytes, "a channel's values of a tile are one swizzle");

// Copying takes more registers than telling the copy engine what to copy.
constexpr int kCopyRegisters = kBytes ? 40 : kProducerRegisters;
constexpr int kAttendRegisters = kBytes ? 232 : kConsumerRegisters;

// One set of counters for each workspace that was ever used with this code. A workspace belongs to one
// execution at a time, so its counters do too; they are zero between launches, because the last to
// arrive clears them. Sets are never given back: when all are taken, every thread block sees that, and
// tiles are cut along their rows instead of their keys, which needs no counters.
constexpr int kCounterSets = 64;
constexpr int kMaxBlocks = 192;

__device__ uint64 counter_owners[kCounterSets];
__device__ uint32 counters[kCounterSets][kMaxBlocks * kWarpgroups];

__device__ __forceinline__ uint32* claim_counters(const void* workspace) {
  const uint64 owner = reinterpret_cast<uint64>(workspace);
  if (owner == 0 || gridDim.x > kMaxBlocks) return nullptr;
  const int start = static_cast<int>((owner >> 8) % kCounterSets);
  for (int i = 0; i < kCounterSets; ++i) {
    const int set = (start + i) % kCounterSets;
    uint64 found = *const_cast<volatile uint64*>(&counter_owners[set]);
    if (found == 0) found = atomicCAS(&counter_owners[set], 0ull, owner);
    if (found == 0 || found == owner) return counters[set];
  }
  return nullptr;
}

struct Tensors {
  const uint8* q;
  const uint8* k[2];
  const uint8* v[2];
  int pitches[2];  // of transposed values
  uint8* out;
};

// A thread's copies complete in order; each barrier is told once the copies before it have landed.
class CopyQueue {
 public:
  __device__ __forceinline__ void wait_empty(uint64* barrier, uint32 parity) {
    if (barrier_is_done(barrier, parity)) return;
    flush();  // the consumers may need what is pending before they can release anything
    barrier_wait(barrier, parity);
  }

  __device__ __forceinline__ void submit(uint64* full) {
    copy_commit();
    if (older_ != nullptr) {
      copy_wait<2>();
      announce(older_);
    }
    older_ = newer_;
    newer_ = full;
  }

  // What was copied since the last submission has landed, too.
  __device__ __forceinline__ void land() {
    copy_commit();
    flush();
  }

  __device__ __forceinline__ void flush() {
    copy_wait<0>();
    if (older_ != nullptr) announce(older_);
    if (newer_ != nullptr) announce(newer_);
    older_ = newer_ = nullptr;
  }

 private:
  static __device__ __forceinline__ bool barrier_is_done(uint64* barrier, uint32 parity) {
    uint32 done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
  }

  static __device__ __forceinline__ void announce(uint64* full) {
    fence_async_proxy();
    barrier_arrive(full);
  }

  uint64* older_ = nullptr;
  uint64* newer_ = nullptr;
};

// Rows of one head, swizzled as the tensor cores read them; rows from `valid` on become zeros.
template <int kRows>
__device__ __forceinline__ void copy_rows(uint32 destination, const uint8* source,
                                          int64 row_bytes, int valid) {
  const int chunk = threadIdx.x % kRowChunks;
  const int first = threadIdx.x % 128 / kRowChunks;
  const uint32 target = destination + chunk / 8 * kRows * kPanelBytes + first * kPanelBytes +
                        ((chunk % 8) ^ (first & 7)) * 16;
  const uint8* from = source + first * row_bytes + chunk * 16;
#pragma unroll 4
  for (int row = 0; row < kRows; row += kRowsPerPass) {
    const bool wanted = first + row < valid;
    copy_chunk(target + row * kPanelBytes, wanted ? from : source, wanted);
    from += kRowsPerPass * row_bytes;
  }
}

// Transposed values of one head, a row for each channel: chunks without a valid key become zeros.
__device__ __forceinline__ void copy_channels(uint32 destination, const uint8* source, int pitch,
                                              int valid) {
  const int chunk = threadIdx.x % kRowChunks;
  const int first = threadIdx.x % 128 / kRowChunks;
  const uint32 target = destination + first * kPanelBytes + (chunk ^ (first & 7)) * 16;
  const bool wanted = chunk * 16 < valid;
  const uint8* from = source + static_cast<int64>(first) * pitch + chunk * 16;
#pragma unroll 4
  for (int row = 0; row < kHeadDim; row += kRowsPerPass) {
    copy_chunk(target + row * kPanelBytes, wanted ? from : source, wanted);
    from += static_cast<int64>(kRowsPerPass) * pitch;
  }
}

// The keys after the last valid one in its chunk may be anything, and 0 x NaN is NaN. A thread clears
// what it has copied: key 8i + 2t + e of a chunk is its byte 4t + 2i + e.
__device__ __forceinline__ void clear_last_chunk(uint8* stage, int valid) {
  const int chunk = threadIdx.x % kRowChunks;
  const int first = threadIdx.x % 128 / kRowChunks;
  const int kept = valid - chunk * 16;
  if (kept <= 0 || kept >= 16) return;
  uint8* target = stage + first * kPanelBytes + (chunk ^ (first & 7)) * 16;
  for (int row = 0; row < kHeadDim; row += kRowsPerPass) {
    for (int key = kept; key < 16; ++key) {
      target[row * kPanelBytes + ((key & 7) >> 1) * 4 + (key >> 3) * 2 + (key & 1)] = 0;
    }
  }
}

template <int kBytesOfRow>
__device__ __forceinline__ int64 token_offset(const Problem& problem, const TilePlace& place,
                                              int tokens, int token) {
  const int64 row = static_cast<int64>(place.batch) * tokens + token;
  return (row * problem.heads + place.head) * kBytesOfRow;
}

__device__ __forceinline__ int64 channel_offset(const Problem& problem, const TilePlace& place,
                                                int pitch, int token) {
  const int64 head = static_cast<int64>(place.batch) * problem.heads + place.head;
  return head * kHeadDim * pitch + token;
}

__device__ __forceinline__ void produce(const Problem& problem, const Tensors& tensors,
                                        const PieceLengths& pieces,
                                        Schedule<kWarpgroups> schedule, uint32 queries, uint32 keys,
                                        uint8* value_memory, Barriers* barriers) {
  const int64 row_bytes = static_cast<int64>(problem.heads) * kRowBytes;
  const uint32 values = shared_address(value_memory);
  CopyQueue queue;
  Segment segment;
  Ring ring;
  QueryRing query_ring;
  while (true) {
    const bool more = schedule.next(segment);
    if (!more) segment.tile = -1;
    queue.wait_empty(&barriers->query_empty[query_ring.stage], query_ring.phase ^ 1);
    if (threadIdx.x == 0) barriers->segments[query_ring.stage] = segment;
    if (!more) {
      queue.submit(&barriers->query_full[query_ring.stage]);
      break;
    }
    const TilePlace place(problem, segment);
    copy_rows<kTileRows>(queries + query_ring.stage * kQueryBytes,
                         tensors.q + token_offset<kRowBytes>(problem, place, problem.queries, place.row),
                         row_bytes, problem.queries - place.row);
    queue.submit(&barriers->query_full[query_ring.stage]);
    query_ring.advance();
    KeyCursor<kTileKeys> cursor(pieces, segment.first_block);
    for (int block = 0; block < segment.blocks; ++block) {
      const int valid = cursor.valid_rows(pieces);
      const int tokens = cursor.piece == 0 ? problem.capacities[0] : problem.capacities[1];
      const int64 offset = token_offset<kRowBytes>(problem, place, tokens, cursor.row);
      queue.wait_empty(&barriers->key_empty[ring.stage], ring.phase ^ 1);
      if (threadIdx.x == 0) barriers->key_valid[ring.stage] = valid;
      copy_rows<kTileKeys>(keys + ring.stage * kStageBytes,
                           (cursor.piece == 0 ? tensors.k[0] : tensors.k[1]) + offset, row_bytes,
                           valid);
      queue.submit(&barriers->key_full[ring.stage]);
      queue.wait_empty(&barriers->value_empty[ring.stage], ring.phase ^ 1);
      if constexpr (kBytes) {
        const int pitch = cursor.piece == 0 ? tensors.pitches[0] : tensors.pitches[1];
        copy_channels(values + ring.stage * kStageBytes,
                      (cursor.piece == 0 ? tensors.v[0] : tensors.v[1]) +
                          channel_offset(problem, place, pitch, cursor.row),
                      pitch, valid);
        if (valid < kTileKeys) {
          queue.land();
          clear_last_chunk(value_memory + ring.stage * kStageBytes, valid);
        }
      } else {
        copy_rows<kTileKeys>(values + ring.stage * kStageBytes,
                             (cursor.piece == 0 ? tensors.v[0] : tensors.v[1]) + offset, row_bytes,
                             valid);
      }
      queue.submit(&barriers->value_full[ring.stage]);
      ring.advance();
      cursor.advance(pieces);
    }
  }
  queue.flush();
}

__device__ __forceinline__ void write_outputs(const Problem& problem, const Tensors& tensors,
                                              const TilePlace& place, uint8* staging,
                                              int warpgroup, const float (&outputs)[kOutputs],
                                              const float (&inverse)[2]) {
  stage_outputs(staging, warpgroup, outputs, inverse);
  named_sync(1 + kWarpgroups + warpgroup, 128);
  const int chunk = threadIdx.x % kOutChunks;
  const int first = warpgroup * 64 + threadIdx.x % 128 / kOutChunks;
  const int limit = smaller(warpgroup * 64 + 64, problem.queries - place.row);
  const uint8* panel = staging + chunk / 8 * kTileRows * kPanelBytes;
  uint8* target = tensors.out +
                  token_offset<kOutRowBytes>(problem, place, problem.queries, place.row) + chunk * 16;
  for (int row = first; row < limit; row += kOutRowsPerPass) {
    const uint8* source = panel + row * kPanelBytes + ((chunk % 8) ^ (row & 7)) * 16;
    *reinterpret_cast<uint4*>(target + static_cast<int64>(row) * problem.heads * kOutRowBytes) =
        *reinterpret_cast<const uint4*>(source);
  }
  named_sync(1 + kWarpgroups + warpgroup, 128);
}

__device__ __forceinline__ void attend(Problem& problem, const Tensors& tensors, float4* workspace) {
  extern __shared__ __align__(1024) uint8 shared[];
  uint8* keys = shared;
  uint8* values = keys + kStages * kStageBytes;
  uint8* query_memory = values + kStages * kStageBytes;
  // Outputs leave through the memory of their queries, or beside it where 8-bit queries are too small.
  uint8* staging = query_memory + kQueryBuffers * kQueryBytes;
  Barriers* barriers = reinterpret_cast<Barriers*>(staging + (kBytes ? kOutBytes : 0));

  if (threadIdx.x == 0) {
    init_barriers(barriers, 128);
    barriers->counters = claim_counters(workspace);
  }
  __syncthreads();
  problem.arrivals = barriers->counters;
  problem.partials = problem.arrivals != nullptr ? workspace : nullptr;
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (role == 0) {
    shrink_registers<kCopyRegisters>();
    const PieceLengths pieces = read_lengths<kTileKeys>(problem.lengths, problem.capacities);
    const Schedule<kWarpgroups> schedule(count_tiles(problem), pieces.total_blocks,
                                         problem.partials != nullptr);
    produce(problem, tensors, pieces, schedule, shared_address(query_memory), shared_address(keys),
            values, barriers);
  } else {
    grow_registers<kAttendRegisters>();
    consume(problem, query_memory, shared_address(keys), shared_address(values), barriers, role - 1,
            [&](const TilePlace& place, uint8* tile_queries, int warpgroup,
                const float(&outputs)[kOutputs], const float(&inverse)[2]) {
              write_outputs(problem, tensors, place, kBytes ? staging : tile_queries, warpgroup,
                            outputs, inverse);
            });
  }
}

__device__ __forceinline__ Problem problem_of(const int64* cache_length, int batch, int heads,
                                              int queries, int cache_tokens) {
  Problem problem{};
  problem.lengths[0] = cache_length;
  problem.capacities[0] = cache_tokens;
  problem.capacities[1] = queries;
  problem.batch = batch;
  problem.heads = heads;
  problem.queries = queries;
  problem.scale_log2 = __int_as_float(LL_SCALE_BITS);
  return problem;
}

}  // namespace

#if LL_ELEMENT < 2
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention_plugin_sm90(const uint8* q, const uint8* k_new, const uint8* v_new,
                                 const uint8* k_cache, const uint8* v_cache,
                                 const int64* cache_length, int batch, int heads, int queries,
                                 int cache_tokens, uint8* out, float4* workspace) {
  Problem problem = problem_of(cache_length, batch, heads, queries, cache_tokens);
  const Tensors tensors{q, {k_cache, k_new}, {v_cache, v_new}, {}, out};
  attend(problem, tensors, workspace);
}
#else
// `plain_q` are queries before they were rounded, whose type the output has; they are not read.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention_plugin_sm90(const uint8* q, const uint8* k_new, const uint8* v_new,
                          const uint8* k_cache, const uint8* v_cache, const int64* cache_length,
                          const float* q_scale, const float* k_scale, const float* v_scale,
                          const uint8* plain_q, int batch, int heads, int queries,
                          int cache_tokens, int new_pitch, int cache_pitch, uint8* out,
                          float4* workspace) {
  Problem problem = problem_of(cache_length, batch, heads, queries, cache_tokens);
  problem.q_scale = q_scale;
  problem.k_scale = k_scale;
  problem.v_scale = v_scale;
  problem.q_scale_batch_stride = queries * heads;
  problem.q_scale_head_stride = 1;
  problem.q_scale_token_stride = heads;
  problem.out_factor = 1.0f;
  const Tensors tensors{q, {k_cache, k_new}, {v_cache, v_new}, {cache_pitch, new_pitch}, out};
  attend(problem, tensors, workspace);
}
#endif
