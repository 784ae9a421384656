// Rows of q, k and v, split: RMS normalization over all heads and rotary embedding of q and k, while v
// is copied. Float32 inside; each output is rounded once.
//
// LL_PLAIN 1: keys also leave as they are before rotation, and what is rotated is that, rounded: a
// later pass that turns the kept keys gets the same bits.
// LL_HADAMARD 1: rotated q and k are multiplied by a Hadamard matrix, which their products do not show.
// LL_QUANTIZE 2: q, k and v leave as float8 E4M3, in units of a scale for each head.
// LL_QUANTIZE 3: q and k leave as int8, q in units of a scale for each row of a head, which leaves too;
// v as float8 E4M3.
// LL_TRANSPOSED 1: v leaves in the layout that 8-bit attention reads, by thread blocks of its own, which
// come first: each turns more tokens than the others have rows.
#include "rows/hadamard.cuh"
#include "rows/rms.cuh"
#include "rows/rope.cuh"
#include "rows/value_tile.cuh"

#ifndef LL_PLAIN
#define LL_PLAIN 1
#endif
#ifndef LL_HADAMARD
#define LL_HADAMARD 0
#endif
#ifndef LL_QUANTIZE
#define LL_QUANTIZE 0
#endif
#ifndef LL_TRANSPOSED
#define LL_TRANSPOSED 0
#endif

namespace {

struct Params {
  const uint8* input;  // rows of q, k, v
  uint8* output[3];
  uint8* plain_key;
  const uint8* weight[2];
  const float* cosine;  // [tokens, head_dim / 2]
  const float* sine;
  const float* scale[3];  // [heads]
  float* row_scale;       // [rows, heads], of q
  int rows;
  int tokens;
  float epsilon;
  int pitch;  // of transposed values
};
static_assert(sizeof(Params) == 120, "as plugins/kernels/rows.py lays it out");

constexpr int kHeads = kDim / kHeadDim;
constexpr bool kInt8Rows = LL_QUANTIZE == 3;

// All lanes of a head are here together, those beyond the row too.
__device__ __forceinline__ float factor_of_row(const Params& params, int64 row, int vector,
                                               const Eight& x) {
  constexpr float kLeast = 1e-12f;  // a row of zeros has a unit, too
  const float largest = fmaxf(head_max(x), kLeast);
  if (in_row(vector) && lane_id() % kHeadLanes == 0) {
    params.row_scale[row * kHeads + column(vector) / kHeadDim] = largest / 127.0f;
  }
  return 127.0f / largest;
}

__device__ __forceinline__ void store_output(const Params& params, int which, int64 row,
                                             int vector, const Eight& x) {
  if constexpr (LL_QUANTIZE) {
    const bool by_row = kInt8Rows && which == 0;
    float factor = by_row ? factor_of_row(params, row, vector, x) : 0.0f;
    if (!in_row(vector)) return;
    if (!by_row) factor = 1.0f / params.scale[which][column(vector) / kHeadDim];
    *reinterpret_cast<uint2*>(params.output[which] + row * kDim + column(vector)) =
        kInt8Rows && which < 2 ? pack_bytes_int8(x, factor, 0) : pack_bytes_e4m3(x, factor);
  } else {
    store(params.output[which] + row * (kDim * 2), vector, pack(x));
  }
}

__device__ __forceinline__ void norm_rope_row(const Params& params, int which, int row,
                                              const uint4 (&words)[kVectors]) {
  const int64 offset = static_cast<int64>(row) * (kDim * 2);
  const Angles angles(params.cosine, params.sine, row % params.tokens);
  const float inverse = inverse_rms(words, params.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    Eight x = normalize(words[i], load_shared_vector(params.weight[which], i), inverse);
    if (LL_PLAIN && which == 1) {
      const uint4 plain = pack(x);
      store(params.plain_key + offset, i, plain);
      x = unpack(plain);
    }
    x = rotated(x, angles.cosine, angles.sine);
    if constexpr (LL_HADAMARD) x = mixed(x);
    store_output(params, which, row, i, x);
  }
}

#if LL_TRANSPOSED
// What a thread block with this number turns.
__device__ __forceinline__ void transpose_values(const Params& params, int block) {
  const int tiles = ceil_div(params.tokens, kTileTokens);
  const int head = block / tiles % kHeads;
  const int batch = block / tiles / kHeads;
  constexpr int64 row_bytes = 3 * kDim * 2;
  HeadValues values;
  values.source = params.input + static_cast<int64>(batch) * params.tokens * row_bytes +
                  2 * kDim * 2 + head * (kHeadDim * 2);
  values.token_bytes = row_bytes;
  values.tokens = params.tokens;
  values.target = params.output[2] +
                  static_cast<int64>(batch * kHeads + head) * kHeadDim * params.pitch;
  values.row_bytes = params.pitch;
  values.first_token = 0;
  values.factor = 1.0f / params.scale[2][head];
  transpose_tile<uint4, 32 * kRowWarps>(values, block % tiles);
}
#endif

__device__ __forceinline__ void work_on_rows(const Params& params, int which, int block) {
  const int row = block * kRowWarps + threadIdx.x / 32;
  if (row >= params.rows) return;
  uint4 words[kVectors];
  load_row(words, params.input + (static_cast<int64>(row) * 3 + which) * (kDim * 2));
  if (which < 2) {
    norm_rope_row(params, which, row, words);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    store_output(params, 2, row, i, unpack(words[i]));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    qkv_norm_rope(const __grid_constant__ Params params) {
#if LL_TRANSPOSED
  const int of_values =
      ceil_div(params.tokens, kTileTokens) * kHeads * (params.rows / params.tokens);
  const int block = blockIdx.x;
  if (block < of_values) {
    transpose_values(params, block);
  } else {
    work_on_rows(params, (block - of_values) % 2, (block - of_values) / 2);
  }
#else
  work_on_rows(params, blockIdx.y, blockIdx.x);
#endif
}
