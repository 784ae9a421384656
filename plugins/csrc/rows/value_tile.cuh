// Values of one head to the transposed 8-bit layout that attention reads: a row of float8 E4M3 for each
// channel, sixteen tokens to a group, token 8i + 2t + e of a group at byte 4t + 2i + e.
//
// A thread block turns 128 tokens. A group that other tokens share (at either end of a slot) is written
// byte by byte.
#pragma once

#include "common/vectors.cuh"

#ifndef LL_HEAD_DIM
#define LL_HEAD_DIM 128
#endif

namespace {

constexpr int kValueDim = LL_HEAD_DIM;
constexpr int kTileTokens = 128;
constexpr int kTileWords = kValueDim / 8;
constexpr int kTilePitch = kTileTokens / 4 + 1;  // in words: neighbors in a column lie in different banks

struct HeadValues {
  const uint8* source;
  int64 token_bytes;
  int tokens;
  uint8* target;
  int64 row_bytes;
  int first_token;  // of the target
  float factor;     // of 16-bit values
};

__device__ __forceinline__ int value_position(int key) {
  return (key & 7) / 2 * 4 + (key >> 3) * 2 + (key & 1);
}

// Eight neighboring values of four tokens, turned: the four tokens' bytes of each value.
__device__ __forceinline__ void turn(const uint2 (&rows)[4], float, uint32 (&words)[8]) {
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

__device__ __forceinline__ void turn(const uint4 (&rows)[4], float factor, uint32 (&words)[8]) {
  Eight values[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) values[j] = unpack(rows[j]);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    words[j] = pack_e4m3(values[0].value[j] * factor, values[1].value[j] * factor,
                         values[2].value[j] * factor, values[3].value[j] * factor);
  }
}

// All threads of the block are here. Loaded is eight values: uint2 of float8, uint4 of 16 bits.
template <typename Loaded, int kThreads>
__device__ __forceinline__ void transpose_tile(const HeadValues& values, int number) {
  __shared__ uint32 tile[kValueDim][kTilePitch];
  const int start = (values.first_token / kTileTokens + number) * kTileTokens;
#pragma unroll
  for (int i = threadIdx.x; i < kTileTokens / 4 * kTileWords; i += kThreads) {
    // A thread takes the four tokens whose bytes are neighbors, and eight values of each.
    const int word = i % kTileWords;
    const int quad = i / kTileWords;
    const int first = quad / 4 * 16 + quad % 4 * 2 + start - values.first_token;
    Loaded rows[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = first + (j & 1) + (j >> 1) * 8;
      rows[j] = Loaded{};
      if (token >= 0 && token < values.tokens) {
        rows[j] = *reinterpret_cast<const Loaded*>(values.source + token * values.token_bytes +
                                                   word * sizeof(Loaded));
      }
    }
    uint32 words[8];
    turn(rows, values.factor, words);
#pragma unroll
    for (int j = 0; j < 8; ++j) tile[word * 8 + j][quad] = words[j];
  }
  __syncthreads();
#pragma unroll
  for (int i = threadIdx.x; i < kValueDim * (kTileTokens / 16); i += kThreads) {
    const int row = i / (kTileTokens / 16);
    const int group = i % (kTileTokens / 16) * 16;
    const int first = values.first_token - start - group;  // tokens of the group before the slot
    const int last = first + values.tokens;
    if (first >= 16 || last <= 0) continue;
    uint8* line = values.target + row * values.row_bytes + start + group;
    const uint32* words = &tile[row][group / 4];
    if (first <= 0 && last >= 16) {
      *reinterpret_cast<uint4*>(line) = make_uint4(words[0], words[1], words[2], words[3]);
      continue;
    }
    for (int key = larger(0, first); key < smaller(16, last); ++key) {
      const int at = value_position(key);
      line[at] = static_cast<uint8>(words[at / 4] >> (at % 4 * 8));
    }
  }
}

}  // namespace
