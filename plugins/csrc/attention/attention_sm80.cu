// Sink-window attention for every GPU since Ampere: the same arithmetic and the same pieces as
// attention_sm90.cu on warp-level matrix instructions. One thread block computes 128 query rows.
//
// LL_ELEMENT is 0 for bfloat16 and 1 for float16; LL_HEAD_DIM is 64 or 128.
#include "attention/schedule.cuh"
#include "common/async_copy.cuh"
#include "common/mma.cuh"

#ifndef LL_ELEMENT
#define LL_ELEMENT 0
#define LL_HEAD_DIM 128
#endif
#ifndef LL_REST_ALIKE
#define LL_REST_ALIKE 0
#endif

namespace {

constexpr int kElement = LL_ELEMENT;
constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16 * kWarps;
constexpr int kTileKeys = 64;
constexpr int kRowBytes = kHeadDim * 2;
constexpr int kRowChunks = kRowBytes / 16;
constexpr int kStageBytes = kTileKeys * kRowBytes;
constexpr float kRescaleLimit = 8.0f;
// The keys that follow the valid ones are like the last of these, which counts for them all.
constexpr bool kRestAlike = LL_REST_ALIKE;

struct Tensor {
  uint8* data;
  int64 batch_bytes;
  int64 token_bytes;
  int64 head_bytes;
  __device__ __forceinline__ uint8* at(int batch, int token, int head) const {
    return data + batch * batch_bytes + token * token_bytes + head * head_bytes;
  }
};
static_assert(sizeof(Tensor) == 32, "as plugins/attention/portable.py lays it out");

struct Params {
  Tensor q;
  Tensor out;
  Tensor k[kMaxPieces];
  Tensor v[kMaxPieces];
  const int64* lengths[kMaxPieces];
  int capacities[kMaxPieces];
  int batch;
  int heads;
  int queries;
  float scale_log2;
};
static_assert(sizeof(Params) == 312, "as plugins/attention/portable.py lays it out");

struct Place {
  int batch;
  int head;
  int row;
};

__device__ __forceinline__ uint32 chunk_address(uint32 base, int row, int chunk) {
  return base + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

template <int kRows>
__device__ __forceinline__ void copy_rows(uint32 destination, const uint8* source,
                                          int64 token_bytes, int valid) {
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kRowChunks; i += kThreads) {
    const int row = i / kRowChunks;
    const int chunk = i % kRowChunks;
    const bool wanted = row < valid;
    copy_chunk(chunk_address(destination, row, chunk),
               wanted ? source + row * token_bytes + chunk * 16 : source, wanted);
  }
}

__device__ __forceinline__ void load_fragments(uint32 (&words)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_fragments_transposed(uint32 (&words)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

constexpr int kScores = kTileKeys / 2;
constexpr int kOutputs = kHeadDim / 2;

struct RowState {
  float maximum[2];
  float sum[2];
};

__device__ __forceinline__ void compute_scores(float (&scores)[kScores],
                                               const uint32 (&query)[kHeadDim / 16][4],
                                               uint32 keys) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kScores; ++i) scores[i] = 0.0f;
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kTileKeys / 16; ++pair) {
      // Two groups of 8 keys: words 0 and 1 belong to the first, 2 and 3 to the second.
      uint32 words[4];
      const int row = pair * 16 + lane / 16 * 8 + lane % 8;
      load_fragments(words, chunk_address(keys, row, step * 2 + lane / 8 % 2));
      multiply_add<kElement>(scores + pair * 8, query[step], words[0], words[1]);
      multiply_add<kElement>(scores + pair * 8 + 4, query[step], words[2], words[3]);
    }
  }
}

__device__ __forceinline__ void add_outputs(float (&outputs)[kOutputs],
                                            const float (&scores)[kScores], uint32 values) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kTileKeys / 16; ++step) {
    const float* s = scores + step * 8;
    const uint32 weights[4] = {pack_halves<kElement>(s[0], s[1]), pack_halves<kElement>(s[2], s[3]),
                               pack_halves<kElement>(s[4], s[5]), pack_halves<kElement>(s[6], s[7])};
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {
      uint32 words[4];
      const int row = step * 16 + lane % 16;
      load_fragments_transposed(words, chunk_address(values, row, pair * 2 + lane / 16));
      multiply_add<kElement>(outputs + pair * 8, weights, words[0], words[1]);
      multiply_add<kElement>(outputs + pair * 8 + 4, weights, words[2], words[3]);
    }
  }
}

__device__ __forceinline__ void mask_scores(float (&scores)[kScores], int valid) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (i / 4 * 8 + threadIdx.x % 4 * 2 + (i & 1) >= valid) scores[i] = negative_infinity();
  }
}

__device__ __forceinline__ void raise_last(float (&scores)[kScores], int valid, float by) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (i / 4 * 8 + threadIdx.x % 4 * 2 + (i & 1) == valid - 1) scores[i] += by;
  }
}

__device__ __forceinline__ void softmax_step(float (&scores)[kScores], float (&outputs)[kOutputs],
                                             RowState& state, float scale_log2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = negative_infinity();
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      maximum = fmaxf(maximum, fmaxf(scores[i + 2 * half], scores[i + 2 * half + 1]));
    }
    maximum = quad_max(maximum);
    const float previous = state.maximum[half];
    if ((maximum - previous) * scale_log2 > kRescaleLimit) {
      const float factor = exp2_approx((previous - maximum) * scale_log2);
      state.maximum[half] = maximum;
      state.sum[half] *= factor;
#pragma unroll
      for (int i = 0; i < kOutputs; i += 4) {
        outputs[i + 2 * half] *= factor;
        outputs[i + 2 * half + 1] *= factor;
      }
    }
    const float offset = state.maximum[half] * scale_log2;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
#pragma unroll
      for (int j = i + 2 * half; j < i + 2 * half + 2; ++j) {
        scores[j] = exp2_approx(fmaf(scores[j], scale_log2, -offset));
        sum += scores[j];
      }
    }
    state.sum[half] += sum;
  }
}

__device__ __forceinline__ void load_query_fragments(uint32 (&query)[kHeadDim / 16][4],
                                                     uint32 queries) {
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    load_fragments(query[step], chunk_address(queries, row, step * 2 + lane / 16));
  }
}

__device__ __forceinline__ void start_copy(const Params& params, const PieceLengths& pieces,
                                           const KeyCursor<kTileKeys>& cursor, const Place& place,
                                           uint32 keys, uint32 values) {
  const int valid = cursor.valid_rows(pieces);
  const Tensor k = cursor.piece == 0 ? params.k[0] : cursor.piece == 1 ? params.k[1] : params.k[2];
  const Tensor v = cursor.piece == 0 ? params.v[0] : cursor.piece == 1 ? params.v[1] : params.v[2];
  copy_rows<kTileKeys>(keys, k.at(place.batch, cursor.row, place.head), k.token_bytes, valid);
  copy_rows<kTileKeys>(values, v.at(place.batch, cursor.row, place.head), v.token_bytes, valid);
}

__device__ __forceinline__ void write_outputs(const Params& params, const Place& place,
                                              const float (&outputs)[kOutputs],
                                              const RowState& state) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(state.sum[half]);
    const float inverse = sum > 0.0f ? 1.0f / sum : (sum == sum ? 0.0f : sum);
    const int row = place.row + threadIdx.x / 32 * 16 + lane / 4 + 8 * half;
    if (row >= params.queries) continue;
    uint8* target = params.out.at(place.batch, row, place.head) + lane % 4 * 4;
#pragma unroll
    for (int i = 0; i < kOutputs / 4; ++i) {
      *reinterpret_cast<uint32*>(target + i * 16) = pack_halves<kElement>(
          outputs[4 * i + 2 * half] * inverse, outputs[4 * i + 2 * half + 1] * inverse);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention_sm80(const __grid_constant__ Params params) {
  extern __shared__ __align__(128) uint8 shared[];
  const uint32 queries = shared_address(shared);
  const uint32 keys = queries + kTileRows * kRowBytes;
  const uint32 values = keys + 2 * kStageBytes;
  const int tiles_per_head = ceil_div(params.queries, kTileRows);
  const int head_index = blockIdx.x / tiles_per_head;
  const Place place{head_index / params.heads, head_index % params.heads,
                    static_cast<int>(blockIdx.x) % tiles_per_head * kTileRows};
  const PieceLengths pieces = read_lengths<kTileKeys>(params.lengths, params.capacities);

  float outputs[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) outputs[i] = 0.0f;
  RowState state{{negative_infinity(), negative_infinity()}, {0.0f, 0.0f}};
  KeyCursor<kTileKeys> cursor(pieces, 0);
  copy_rows<kTileRows>(queries, params.q.at(place.batch, place.row, place.head),
                       params.q.token_bytes, params.queries - place.row);
  if (pieces.total_blocks > 0) start_copy(params, pieces, cursor, place, keys, values);
  copy_commit();
  uint32 query[kHeadDim / 16][4];
#pragma unroll 1
  for (int block = 0; block < pieces.total_blocks; ++block) {
    const int valid = cursor.valid_rows(pieces);
    const uint32 stage = block % 2 * kStageBytes;
    copy_wait<0>();
    __syncthreads();
    if (block + 1 < pieces.total_blocks) {
      cursor.advance(pieces);
      start_copy(params, pieces, cursor, place, keys + (kStageBytes - stage),
                 values + (kStageBytes - stage));
    }
    copy_commit();
    if (block == 0) load_query_fragments(query, queries);
    float scores[kScores];
    compute_scores(scores, query, keys + stage);
    if (kRestAlike && block + 1 == pieces.total_blocks) {
      raise_last(scores, valid,
                 score_of_rest(params.capacities[0], pieces.valid[0], params.scale_log2));
    }
    if (valid < kTileKeys) mask_scores(scores, valid);
    softmax_step(scores, outputs, state, params.scale_log2);
    add_outputs(outputs, scores, values + stage);
  }
  copy_wait<0>();
  write_outputs(params, place, outputs, state);
}
