// Values to the transposed 8-bit layout that attention reads: [batch, heads, head_dim, pitch] bytes of
// float8 E4M3, sixteen keys to a group, key 8i + 2t + e of a group at byte 4t + 2i + e.
//
// LL_BYTES 1: they are float8 E4M3 already, and only change places.
//
// LL_PLUGIN 1: as TensorRT launches it, with pointers and integers for arguments.
//
// A thread block handles 128 tokens of the destination and one head. A group that other tokens share
// (at either end of a slot) is written byte by byte.
#include "common/vectors.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif
#ifndef LL_BYTES
#define LL_BYTES 0
#endif
#ifndef LL_PLUGIN
#define LL_PLUGIN 0
#endif

namespace {

constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kTokens = 128;
constexpr int kThreads = 256;
constexpr int kRowWords = kHeadDim / 8;
constexpr int kPitch = kTokens / 4 + 1;  // in words: neighbors in a column lie in different banks

struct Params {
  const uint8* input;  // [batch, tokens, heads, head_dim]
  uint8* output;
  const float* scale;  // [heads], for 16-bit values
  int64 input_batch_bytes;
  int64 input_token_bytes;
  int64 input_head_bytes;
  int64 output_batch_bytes;
  int64 output_head_bytes;
  int64 output_row_bytes;
  int heads;
  int tokens;
  int first_token;  // of the destination
};
static_assert(sizeof(Params) == 88, "as plugins/kernels/quantize.py lays it out");

__device__ __forceinline__ int position(int key) {
  return (key & 7) / 2 * 4 + (key >> 3) * 2 + (key & 1);
}

// Eight neighboring values of four tokens, turned: the four tokens' bytes of each value.
#if LL_BYTES
using Loaded = uint2;
__device__ __forceinline__ void turn(const Loaded (&rows)[4], float, uint32 (&words)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32 x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = half ? rows[j].y : rows[j].x;
    const uint32 low01 = __byte_perm(x[0], x[1], 0x5140);
    const uint32 low23 = __byte_perm(x[2], x[3], 0x5140);
    const uint32 high01 = __byte_perm(x[0], x[1], 0x7362);
    const uint32 high23 = __byte_perm(x[2], x[3], 0x7362);
    words[4 * half] = __byte_perm(low01, low23, 0x5410);
    words[4 * half + 1] = __byte_perm(low01, low23, 0x7632);
    words[4 * half + 2] = __byte_perm(high01, high23, 0x5410);
    words[4 * half + 3] = __byte_perm(high01, high23, 0x7632);
  }
}
#else
using Loaded = uint4;
__device__ __forceinline__ void turn(const Loaded (&rows)[4], float factor, uint32 (&words)[8]) {
  Eight values[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) values[j] = unpack(rows[j]);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    words[j] = pack_e4m3(values[0].value[j] * factor, values[1].value[j] * factor,
                         values[2].value[j] * factor, values[3].value[j] * factor);
  }
}
#endif

__device__ __forceinline__ void transpose(const Params& params) {
  __shared__ uint32 tile[kHeadDim][kPitch];
  const int head = blockIdx.y % params.heads;
  const int batch = blockIdx.y / params.heads;
  const int start = params.first_token / kTokens * kTokens + blockIdx.x * kTokens;
  const float factor = LL_BYTES ? 1.0f : 1.0f / params.scale[head];
  const uint8* source = params.input + batch * params.input_batch_bytes +
                        head * params.input_head_bytes;
#pragma unroll
  for (int i = threadIdx.x; i < kTokens / 4 * kRowWords; i += kThreads) {
    // A thread takes the four tokens whose bytes are neighbors, and eight values of each.
    const int word = i % kRowWords;
    const int quad = i / kRowWords;
    const int first = quad / 4 * 16 + quad % 4 * 2 + start - params.first_token;
    Loaded rows[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = first + (j & 1) + (j >> 1) * 8;
      rows[j] = Loaded{};
      if (token >= 0 && token < params.tokens) {
        rows[j] = *reinterpret_cast<const Loaded*>(source + token * params.input_token_bytes +
                                                   word * sizeof(Loaded));
      }
    }
    uint32 words[8];
    turn(rows, factor, words);
#pragma unroll
    for (int j = 0; j < 8; ++j) tile[word * 8 + j][quad] = words[j];
  }
  __syncthreads();
  uint8* target = params.output + batch * params.output_batch_bytes +
                  head * params.output_head_bytes + start;
#pragma unroll
  for (int i = threadIdx.x; i < kHeadDim * (kTokens / 16); i += kThreads) {
    const int row = i / (kTokens / 16);
    const int group = i % (kTokens / 16) * 16;
    const int first = params.first_token - start - group;  // tokens of the group before the slot
    const int last = first + params.tokens;
    if (first >= 16 || last <= 0) continue;
    uint8* line = target + row * params.output_row_bytes + group;
    const uint32* words = &tile[row][group / 4];
    if (first <= 0 && last >= 16) {
      *reinterpret_cast<uint4*>(line) = make_uint4(words[0], words[1], words[2], words[3]);
      continue;
    }
    for (int key = larger(0, first); key < smaller(16, last); ++key) {
      const int at = position(key);
      line[at] = static_cast<uint8>(words[at / 4] >> (at % 4 * 8));
    }
  }
}

}  // namespace

#if LL_PLUGIN
extern "C" __global__ void __launch_bounds__(kThreads)
    transposed_values_plugin(const uint8* input, int heads, int tokens, int pitch, uint8* output) {
  Params params{};
  params.input = input;
  params.output = output;
  params.input_head_bytes = kHeadDim;
  params.input_token_bytes = static_cast<int64>(heads) * kHeadDim;
  params.input_batch_bytes = params.input_token_bytes * tokens;
  params.output_row_bytes = pitch;
  params.output_head_bytes = static_cast<int64>(kHeadDim) * pitch;
  params.output_batch_bytes = params.output_head_bytes * heads;
  params.heads = heads;
  params.tokens = tokens;
  transpose(params);
}
#else
extern "C" __global__ void __launch_bounds__(kThreads)
    transposed_values(const __grid_constant__ Params params) {
  transpose(params);
}
#endif
