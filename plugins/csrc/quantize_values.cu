// Values to the transposed 8-bit layout that attention reads: [batch, heads, head_dim, pitch] bytes of
// float8 E4M3, sixteen keys to a group, key 8i + 2t + e of a group at byte 4t + 2i + e.
//
// A thread block handles 64 tokens of the destination and one head. A group that other tokens share
// (at either end of a slot) is written byte by byte.
#include "rows.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif

namespace {

constexpr int kHeadDim = LL_HEAD_DIM;
constexpr int kTokens = 64;
constexpr int kThreads = 256;
constexpr int kRowWords = kHeadDim / 8;
constexpr int kPitch = kTokens + 16;

struct Params {
  const uint8* input;  // [batch, tokens, heads, head_dim], 16-bit
  uint8* output;
  const float* scale;  // [heads]
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

__device__ __forceinline__ int position(int token) {
  const int key = token % 16;
  return token / 16 * 16 + (key & 7) / 2 * 4 + (key >> 3) * 2 + (key & 1);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    quantize_values(const __grid_constant__ Params params) {
  __shared__ __align__(16) uint8 tile[kHeadDim][kPitch];
  const int head = blockIdx.y % params.heads;
  const int batch = blockIdx.y / params.heads;
  const int start = params.first_token / kTokens * kTokens + blockIdx.x * kTokens;
  const float factor = 1.0f / params.scale[head];
  const uint8* source = params.input + batch * params.input_batch_bytes +
                        head * params.input_head_bytes;
#pragma unroll
  for (int i = threadIdx.x; i < kTokens * kRowWords; i += kThreads) {
    // Neighboring threads take neighboring tokens, so that the bytes they store do not collide.
    const int local = i / kRowWords;
    const int word = i % kRowWords;
    const int token = start + local - params.first_token;
    uint2 bytes = make_uint2(0, 0);
    if (token >= 0 && token < params.tokens) {
      bytes = pack_bytes_e4m3(unpack(*reinterpret_cast<const uint4*>(
                                  source + token * params.input_token_bytes + word * 16)),
                              factor);
    }
    const int at = position(local);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      tile[word * 8 + j][at] = static_cast<uint8>((j < 4 ? bytes.x : bytes.y) >> (8 * (j % 4)));
    }
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
    if (first <= 0 && last >= 16) {
      *reinterpret_cast<uint4*>(line) = *reinterpret_cast<const uint4*>(&tile[row][group]);
      continue;
    }
    for (int key = larger(0, first); key < smaller(16, last); ++key) {
      line[position(key)] = tile[row][group + position(key)];
    }
  }
}
