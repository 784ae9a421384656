// A causal 3x3x3 convolution of 8-bit frames as a matrix product that is never spelled out, and what
// follows it while its sums lie in registers: bias, residual, channel norm, SiLU, and eight bits again.
//
// A CTA makes patches of 8x8 pixels and LL_BLOCK of their output channels. A frame's tile of the
// input, with a border of one pixel, comes to shared memory once, as [16 channels][row][column][16]:
// the tensor cores' own order, without a swizzle. So each of nine taps is the same descriptor, moved by
// a pixel's 16 bytes or by a row. Three frames follow each other; weights stream past them. The copy
// engine puts zeros beyond the picture, and before the first frame of a video.
//
// With LL_PAIR the two CTAs of a cluster have the channels of a pixel, half each, and tell each other
// the sum of their squares, so that the norm is over all of them.
//
// One warpgroup loads and two multiply. With LL_TURNS each of the two takes whole tiles, and multiplies
// while the other finishes; otherwise they share one.
//
// The rows of the weights are ordered so that a thread holds eight neighboring channels
// (plugins/kernels/vae_conv.py).
//
// With LL_OFFSETS another int8 number than 0 stands for zero in the input. What that adds to the sums
// is known: at the picture's edges, where the copy engine's zeros mean something else, by tables.
#include "attention/hopper.cuh"
#include "attention/wgmma.cuh"
#include "common/vectors.cuh"

#ifndef LL_BLOCK
#define LL_NARROW 2
#define LL_BLOCK 96
#define LL_CHUNK 96
#define LL_CHUNKS 1
#define LL_PATCH_ROWS 2
#define LL_TURNS 1
#define LL_TILE_STAGES 3
#define LL_WEIGHT_STAGES 14
#define LL_RESIDUAL 1
#define LL_SUM 1
#define LL_NORM 1
#define LL_PAIR 0
#define LL_OFFSETS 0
#define LL_SHARED_BYTES 224144
#endif

namespace {

constexpr int kNarrow = LL_NARROW;
constexpr int kBlock = LL_BLOCK;
constexpr int kChunk = LL_CHUNK;  // input channels of a tile
constexpr bool kTurns = LL_TURNS;
constexpr int kPatchColumns = 2;
constexpr int kPatches = LL_PATCH_ROWS * kPatchColumns;
constexpr int kOwnPatches = kTurns ? kPatches : kPatches / 2;
constexpr int kSide = 8;  // of a patch
constexpr int kTileRows = kSide * LL_PATCH_ROWS + 2;
constexpr int kTileColumns = kSide * kPatchColumns + 2;
constexpr int kPiece = 16;  // channels that lie together
constexpr int kRowBytes = kTileColumns * kPiece;
constexpr int kPlaneBytes = kTileRows * kRowBytes;
constexpr int kTileBytes = kChunk / kPiece * kPlaneBytes;
constexpr int kTilePitch = ceil_div(kTileBytes, 256) * 256;
constexpr int kSlice = 96;  // input channels of a stage of weights
constexpr int kSlices = kChunk / kSlice;
constexpr int kStep = 32;  // input channels of an instruction
constexpr int kWeightBytes = kBlock * kSlice;
constexpr int kTaps = 3;
constexpr int kTilesOfUnit = LL_CHUNKS * kTaps;
constexpr int kWeightsOfUnit = kTilesOfUnit * kTaps * kTaps * kSlices;
constexpr int kVectorsAt = LL_TILE_STAGES * kTilePitch + LL_WEIGHT_STAGES * kWeightBytes;
constexpr int kTilePixels = kPatches * kSide * kSide;
constexpr int kLetterBoxes = LL_PAIR ? 2 : 0;  // one is read while the next comes
constexpr int kLettersAt = kVectorsAt + 3 * kBlock * 4;
constexpr int kBarriersAt = kLettersAt + kLetterBoxes * kTilePixels * 4;
static_assert(kBarriersAt + 16 * (LL_TILE_STAGES + LL_WEIGHT_STAGES + kLetterBoxes) ==
                  LL_SHARED_BYTES,
              "as plugins/kernels/conv_tiles.py counts them");
static_assert(!LL_PAIR || !kTurns, "both warpgroups of both CTAs are at the same tile");
static_assert(kBlock % 32 == 0 && kChunk % kSlice == 0, "a thread holds whole groups of channels");

constexpr int kGroup = 32;  // channels that four threads hold together, eight each
constexpr int kGroups = kBlock / kGroup;
constexpr int kWarpgroup = 128;
constexpr int kLeaving = (kTurns ? 1 : 2) * kWarpgroup / 32;  // warps that free a stage

struct Params {
  TensorMap frames;
  TensorMap history;     // unused if there is none
  const uint8* weights;  // [blocks][chunks][3 frames][9 taps][slices][6][kBlock][16]
  const float* scale;    // of each output channel's sums
  const int* offsets;    // [3 x 16 edges][channels], added to the sums
  const uint16* bias;
  const uint16* gamma;
  const uint8* residual;
  const uint8* kept;  // the next convolution's history; null: nothing came before
  uint8* sum;
  uint8* output;
  uint8* history_next;  // of the next convolution
  float factor;
  int has_history;
  int batch;
  int frames_of_row;
  int height;
  int width;
  int blocks;
  int zero;  // what stands for zero in the output
};
static_assert(sizeof(Params) == 384, "as plugins/kernels/vae_conv.py lays it out");

struct Shared {
  uint8* tiles;
  uint8* weights;
  float* vectors;  // scale, bias, gamma of the CTA's channels
  float* letters;  // a number for each pixel, from the other CTA
  uint64* tile_is_full;
  uint64* tile_is_free;
  uint64* weight_is_full;
  uint64* weight_is_free;
  uint64* letters_came;  // to each warpgroup, in each box
};

__device__ __forceinline__ Shared shared_parts(uint8* memory) {
  uint64* barriers = reinterpret_cast<uint64*>(memory + kBarriersAt);
  return {memory,
          memory + LL_TILE_STAGES * kTilePitch,
          reinterpret_cast<float*>(memory + kVectorsAt),
          reinterpret_cast<float*>(memory + kLettersAt),
          barriers,
          barriers + LL_TILE_STAGES,
          barriers + 2 * LL_TILE_STAGES,
          barriers + 2 * LL_TILE_STAGES + LL_WEIGHT_STAGES,
          barriers + 2 * LL_TILE_STAGES + 2 * LL_WEIGHT_STAGES};
}

// A place in a ring of stages, and the phase of its barriers.
template <int kStages>
struct Ring {
  int stage;
  uint32 phase;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
  template <int kCount>
  __device__ __forceinline__ void skip() {
    stage += kCount % kStages;
    phase ^= kCount / kStages & 1;
    if (stage >= kStages) {
      stage -= kStages;
      phase ^= 1;
    }
  }
};

struct Place {
  int row;    // of the batch
  int frame;  // of that row
  int y;
  int x;
};

// Neighbors in time follow each other, for they read the same frames.
__device__ __forceinline__ Place place_of(const Params& params, int unit) {
  const int tiles_wide = ceil_div(params.width, kSide * kPatchColumns);
  const int spatial = unit / params.blocks;
  const int frames = params.batch * params.frames_of_row;
  const int frame = spatial % frames;
  const int tile = spatial / frames;
  return {frame / params.frames_of_row, frame % params.frames_of_row,
          tile / tiles_wide * (kSide * LL_PATCH_ROWS), tile % tiles_wide * (kSide * kPatchColumns)};
}

__device__ __forceinline__ int unit_count(const Params& params) {
  return ceil_div(params.width, kSide * kPatchColumns) *
         ceil_div(params.height, kSide * LL_PATCH_ROWS) * params.batch * params.frames_of_row *
         params.blocks;
}

// ---- loading ------------------------------------------------------------------------------------

// Index -1 is beyond the tensor, and gives zeros.
__device__ __forceinline__ void load_tile(const Params& params, const Place& place, int frame,
                                          int chunk, uint8* tile, uint64* barrier) {
  const bool is_past = frame < 0;
  const bool is_kept = is_past && params.has_history;
  const TensorMap* map = is_kept ? &params.history : &params.frames;
  const int present = is_past ? -1 : place.row * params.frames_of_row + frame;
  const int index = is_kept ? place.row * 2 + frame + 2 : present;
  barrier_expect_bytes(barrier, kTileBytes);
  load_box(tile, map, barrier, 0, place.x - 1, place.y - 1, chunk * (kChunk / kPiece), index);
}

__device__ __forceinline__ void load_tiles(const Params& params, const Shared& shared, int units) {
  Ring<LL_TILE_STAGES> ring{0, 1};
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Place place = place_of(params, unit);
    for (int chunk = 0; chunk < LL_CHUNKS; ++chunk) {
      for (int tap = 0; tap < kTaps; ++tap) {
        barrier_wait(shared.tile_is_free + ring.stage, ring.phase);
        load_tile(params, place, place.frame + tap - 2, chunk,
                  shared.tiles + ring.stage * kTilePitch, shared.tile_is_full + ring.stage);
        ring.advance();
      }
    }
  }
}

__device__ __forceinline__ void load_weights(const Params& params, const Shared& shared, int units,
                                             int block) {
  Ring<LL_WEIGHT_STAGES> ring{0, 1};
  const uint8* first = params.weights + static_cast<int64>(block) * kWeightsOfUnit * kWeightBytes;
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const uint8* source = first;
    for (int i = 0; i < kWeightsOfUnit; ++i, source += kWeightBytes) {
      barrier_wait(shared.weight_is_free + ring.stage, ring.phase);
      barrier_expect_bytes(shared.weight_is_full + ring.stage, kWeightBytes);
      load_bytes(shared.weights + ring.stage * kWeightBytes, source, kWeightBytes,
                 shared.weight_is_full + ring.stage);
      ring.advance();
    }
  }
}

__device__ __forceinline__ float half_value(uint16 half) {
  float low;
  float high;
  unpack_halves(half, low, high);
  return low;
}

__device__ __forceinline__ void load_vectors(const Params& params, float* vectors, int block) {
  for (int i = threadIdx.x; i < kBlock; i += blockDim.x) {
    const int channel = block * kBlock + i;
    const float scale = params.scale[channel];
    const float offset = LL_OFFSETS ? scale * static_cast<float>(params.offsets[channel]) : 0.0f;
    vectors[i] = scale;
    vectors[kBlock + i] = half_value(params.bias[channel]) + offset;
    if constexpr (LL_NORM) vectors[2 * kBlock + i] = half_value(params.gamma[channel]);
  }
}

// ---- multiplying --------------------------------------------------------------------------------

// Of int8 they are integers, bit for bit.
using Sums = float[kOwnPatches][kBlock / 2];

// Offsets are in bytes, operands 16 bytes apart: a pixel, and 8 rows of weights. An address has the
// rank of its CTA in a cluster above its offset; a descriptor has room for the offset alone.
__device__ __forceinline__ uint64 plain_descriptor(uint32 address, int pieces_apart, int rows_apart) {
  return (static_cast<uint64>(pieces_apart >> 4) << 16) |
         (static_cast<uint64>(rows_apart >> 4) << 32) | ((address & 0x3ffff) >> 4);
}

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < kOwnPatches; ++i) {
#pragma unroll
    for (int j = 0; j < kBlock / 2; ++j) sums[i][j] = 0.0f;
  }
}

// One tap, and the input channels of one stage of weights.
__device__ __forceinline__ void multiply(Sums& sums, uint64 tile, uint64 weights, int tap,
                                         int slice) {
#pragma unroll
  for (int step = 0; step < kSlice / kStep; ++step) {
#pragma unroll
    for (int i = 0; i < kOwnPatches; ++i) {
      const int row = i / kPatchColumns * kSide + tap / kTaps;
      const int column = i % kPatchColumns * kSide + tap % kTaps;
      const int piece = (slice * kSlice + step * kStep) / kPiece;
      const int at = piece * kPlaneBytes + row * kRowBytes + column * kPiece;
      const int weights_at = step * kStep / kPiece * (kBlock * kPiece);
      Wgmma<kNarrow, kBlock>::shared(sums[i], tile + (at >> 4), weights + (weights_at >> 4), 1);
    }
  }
}

__device__ __forceinline__ void leave(uint64* barrier) {
  if (lane_id() == 0) barrier_arrive(barrier);
}

struct Rings {
  Ring<LL_TILE_STAGES> tiles;
  Ring<LL_WEIGHT_STAGES> weights;
};

// All 27 taps of a unit. A stage is free one stage later, when its instructions have ended.
__device__ __forceinline__ void multiply_unit(Sums& sums, const Shared& shared, Rings& rings,
                                              uint64 tile, uint64 weights) {
  int used_weights = -1;
  int used_tile = -1;
#pragma unroll 1
  for (int i = 0; i < kTilesOfUnit; ++i) {
    barrier_wait(shared.tile_is_full + rings.tiles.stage, rings.tiles.phase);
    const uint64 tile_now = tile + (rings.tiles.stage * kTilePitch >> 4);
#pragma unroll
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        const int stage = rings.weights.stage;
        barrier_wait(shared.weight_is_full + stage, rings.weights.phase);
        wgmma_fence();
        multiply(sums, tile_now, weights + (stage * kWeightBytes >> 4), tap, slice);
        wgmma_commit();
        wgmma_wait<1>();
        if (used_weights >= 0) leave(shared.weight_is_free + used_weights);
        if (tap == 0 && slice == 0 && used_tile >= 0) leave(shared.tile_is_free + used_tile);
        used_weights = stage;
        rings.weights.advance();
      }
    }
    used_tile = rings.tiles.stage;
    rings.tiles.advance();
  }
  wgmma_wait<0>();
  leave(shared.weight_is_free + used_weights);
  leave(shared.tile_is_free + used_tile);
}

// ---- finishing ----------------------------------------------------------------------------------

__device__ __forceinline__ float sum_value(float sum) {
  return kNarrow == kInt8 ? static_cast<float>(__float_as_int(sum)) : sum;
}

// Read again every time: held in registers, they would push the sums out.
__device__ __forceinline__ float2 load_pair(uint32 address) {
  float2 pair;
  asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(pair.x), "=f"(pair.y)
               : "r"(address));
  return pair;
}

__device__ __forceinline__ float silu(float x) {
  float tangent;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tangent) : "f"(0.5f * x));
  return fmaf(0.5f * x, tangent, 0.5f * x);
}

// Where a thread's channels of a pixel are, and what it needs of them.
struct Pixel {
  int64 value;  // of the tensor, in elements
  int64 within;  // of the frame
  bool is_inside;
};

__device__ __forceinline__ Pixel pixel_at(const Params& params, const Place& place, int block, int patch,
                                          int half) {
  const int warp = threadIdx.x / 32 % 4;
  const int y = place.y + patch / kPatchColumns * kSide + 2 * warp + half;
  const int x = place.x + patch % kPatchColumns * kSide + lane_id() / 4;
  const int channels = params.blocks * kBlock;
  const int frame = place.row * params.frames_of_row + place.frame;
  const int64 within =
      (static_cast<int64>(y) * params.width + x) * channels + block * kBlock + lane_id() % 4 * 8;
  const int64 frame_values = static_cast<int64>(params.height) * params.width * channels;
  return {frame * frame_values + within, within, y < params.height && x < params.width};
}

// Those of a whole pixel come ahead; in pairs, whose sums wait longer, registers are too few for that.
constexpr bool kResidualAhead = LL_RESIDUAL && !LL_PAIR;
using Residual = uint4[kResidualAhead ? kGroups : 1];

__device__ __forceinline__ uint4 load_in_turn(const uint8* address) {
  uint4 words;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(address)
               : "memory");
  return words;
}

__device__ __forceinline__ void load_residual(Residual& residual, const Params& params,
                                              const Pixel& pixel) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    if (pixel.is_inside) {
      residual[kResidualAhead ? group : 0] = *reinterpret_cast<const uint4*>(
          params.residual + 2 * (pixel.value + group * kGroup));
    }
  }
}

__device__ __forceinline__ uint32 word(const uint4& words, int index) {
  return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

__device__ __forceinline__ uint2 load_in_turn(const int* address) {
  uint2 words;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(address)
               : "memory");
  return words;
}

// Which neighbors are missing: above, below, left, right; and of the frames before.
__device__ __forceinline__ int edges_at(const Params& params, const Place& place, int patch,
                                        int half) {
  const int y = place.y + patch / kPatchColumns * kSide + 2 * (threadIdx.x / 32 % 4) + half;
  const int x = place.x + patch % kPatchColumns * kSide + lane_id() / 4;
  const int beside = (y == 0) | (y == params.height - 1) << 1 | (x == 0) << 2 |
                     (x == params.width - 1) << 3;
  const int before = params.has_history || place.frame >= 2 ? 0 : 2 - place.frame;
  return before * 16 + beside;
}

// What a pixel at an edge has otherwise than one inside, into its sums of int8.
__device__ __forceinline__ void correct(float (&sums)[kBlock / 2], int half, const Params& params,
                                        int edges, int block) {
  const int* offsets = params.offsets + (edges * params.blocks + block) * kBlock +
                       lane_id() % 4 * 8;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      float* pair = sums + (4 * group + q) * 4 + 2 * half;
      const uint2 added = load_in_turn(offsets + group * kGroup + 2 * q);
      pair[0] = __uint_as_float(__float_as_uint(pair[0]) + added.x);
      pair[1] = __uint_as_float(__float_as_uint(pair[1]) + added.y);
    }
  }
}

__device__ __forceinline__ void correct_all(Sums& sums, const Params& params, const Place& place,
                                            int block, int first_patch) {
#pragma unroll
  for (int i = 0; i < kOwnPatches; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int edges = edges_at(params, place, first_patch + i, half);
      if (edges != 0) correct(sums[i], half, params, edges, block);
    }
  }
}

// Scaled, with bias and residual, in place of the sums; gives the sum of their squares.
__device__ __forceinline__ float add_up(float (&sums)[kBlock / 2], int half,
                                        const Residual& residual, const Params& params,
                                        const Pixel& pixel, uint32 vectors) {
  float squares = 0.0f;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    uint4 added = residual[kResidualAhead ? group : 0];
    if (LL_RESIDUAL && !kResidualAhead && pixel.is_inside) {
      added = load_in_turn(params.residual + 2 * (pixel.value + group * kGroup));
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const uint32 at = vectors + 4 * (group * kGroup + 2 * q);
      const float2 scale = load_pair(at);
      const float2 bias = load_pair(at + 4 * kBlock);
      float& first = sums[(4 * group + q) * 4 + 2 * half];
      float& second = sums[(4 * group + q) * 4 + 2 * half + 1];
      first = fmaf(sum_value(first), scale.x, bias.x);
      second = fmaf(sum_value(second), scale.y, bias.y);
      if constexpr (LL_RESIDUAL) {
        float low;
        float high;
        unpack_halves(word(added, q), low, high);
        first += low;
        second += high;
      }
      if constexpr (LL_NORM) squares = fmaf(first, first, fmaf(second, second, squares));
    }
  }
  return squares;
}

__device__ __forceinline__ void store_sum(const float (&sums)[kBlock / 2], int half,
                                          uint8* target) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const float* values = sums + 16 * group + 2 * half;
    *reinterpret_cast<uint4*>(target + 2 * group * kGroup) =
        make_uint4(pack_halves<kElement>(values[0], values[1]),
                   pack_halves<kElement>(values[4], values[5]),
                   pack_halves<kElement>(values[8], values[9]),
                   pack_halves<kElement>(values[12], values[13]));
  }
}

// Norm, SiLU and rounding; the last frames go to the next convolution's history as well.
__device__ __forceinline__ void store_active(const float (&sums)[kBlock / 2], int half, float gain,
                                             uint32 vectors, float factor, int zero,
                                             uint8* target, uint8* remembered) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    Eight active;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float2 gamma = load_pair(vectors + 4 * (2 * kBlock + group * kGroup + 2 * q));
      const float* pair = sums + (4 * group + q) * 4 + 2 * half;
      active.value[2 * q] = silu(pair[0] * gain * gamma.x);
      active.value[2 * q + 1] = silu(pair[1] * gain * gamma.y);
    }
    const uint2 words =
        kNarrow == kE4M3 ? pack_bytes_e4m3(active, factor) : pack_bytes_int8(active, factor, zero);
    *reinterpret_cast<uint2*>(target + group * kGroup) = words;
    if (remembered != nullptr) *reinterpret_cast<uint2*>(remembered + group * kGroup) = words;
  }
}

// A lone frame moves the one before it up in the history.
__device__ __forceinline__ void move_up(const Params& params, uint8* to, int64 at) {
  const uint32 zeros = 0x01010101u * (params.zero & 255);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int64 value = at + group * kGroup;
    *reinterpret_cast<uint2*>(to + group * kGroup) =
        params.kept == nullptr ? make_uint2(zeros, zeros)
                               : *reinterpret_cast<const uint2*>(params.kept + value);
  }
}

// What comes of the sum of squares of a pixel's channels.
__device__ __forceinline__ float gain_of(float squares) {
  const float root = sqrtf(static_cast<float>(LL_PAIR ? 2 * kBlock : kBlock));
  return root * rsqrtf(fmaxf(squares, 1e-24f));
}

__device__ __forceinline__ void store_pixel(const Params& params, const Place& place,
                                            const Pixel& pixel, const float (&sums)[kBlock / 2],
                                            int half, float squares, uint32 vectors) {
  if (!pixel.is_inside) return;
  const int64 frame_values =
      static_cast<int64>(params.height) * params.width * params.blocks * kBlock;
  const int64 first = 2 * place.row * frame_values + pixel.within;
  const int slot = place.frame + 2 - params.frames_of_row;
  uint8* remembered = slot < 0 ? nullptr : params.history_next + first + slot * frame_values;
  if (params.frames_of_row == 1) {
    move_up(params, params.history_next + first, first + frame_values);
  }
  store_active(sums, half, gain_of(squares), vectors, params.factor, params.zero,
               params.output + pixel.value, remembered);
}

// Of each of a thread's pixels.
using Squares = float[kOwnPatches][2];

// The CTAs of a pair give each other what they have, and take what they miss.
__device__ __forceinline__ void exchange(const Shared& shared, Squares& squares, int block,
                                         int first_patch, int mine, int turn) {
  const int box = turn % 2;
  float* letters = shared.letters + box * kTilePixels + threadIdx.x / 4 % 32;
  uint64* came = shared.letters_came + 2 * box + mine;
#pragma unroll
  for (int i = 0; i < kOwnPatches; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      squares[i][half] = quad_sum(squares[i][half]);
      const float* letter = letters + ((first_patch + i) * 2 + half) * 32;
      if (lane_id() % 4 == 0) store_remote(remote_address(letter, 1 - block), squares[i][half]);
    }
  }
  __syncwarp();
  if (lane_id() == 0) barrier_arrive_remote(remote_address(came, 1 - block));
  barrier_wait_cluster(came, turn / 2 % 2);
#pragma unroll
  for (int i = 0; i < kOwnPatches; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      squares[i][half] += letters[((first_patch + i) * 2 + half) * 32];
    }
  }
}

// A thread has two pixels of each patch, one above the other. `after` takes each one's patch, half,
// place and sum of squares.
template <typename After>
__device__ __forceinline__ void add_up_all(const Params& params, const Place& place, int block,
                                           int first_patch, Sums& sums, uint32 vectors,
                                           const After& after) {
  Residual residual{};
  Pixel pixel = pixel_at(params, place, block, first_patch, 0);
  if constexpr (kResidualAhead) load_residual(residual, params, pixel);
#pragma unroll
  for (int i = 0; i < kOwnPatches; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float squares = add_up(sums[i], half, residual, params, pixel, vectors);
      const Pixel present = pixel;
      if (half == 0 || i + 1 < kOwnPatches) {  // on its way while this one is finished
        pixel = pixel_at(params, place, block, first_patch + i + half, 1 - half);
        if constexpr (kResidualAhead) load_residual(residual, params, pixel);
      }
      if (LL_SUM && present.is_inside) {
        store_sum(sums[i], half, params.sum + 2 * present.value);
      }
      after(i, half, present, squares);
    }
  }
}

__device__ __forceinline__ void finish(const Params& params, const Place& place, int block,
                                       int first_patch, Sums& sums, uint32 vectors) {
  const auto store = [&](int i, int half, const Pixel& pixel, float squares) {
    if constexpr (LL_NORM) {
      store_pixel(params, place, pixel, sums[i], half, quad_sum(squares), vectors);
    }
  };
  add_up_all(params, place, block, first_patch, sums, vectors, store);
}

// Nothing is stored before the other CTA has told its part.
__device__ __forceinline__ void finish_together(const Params& params, const Shared& shared,
                                                Place place, int block, int first_patch, int mine,
                                                int turn, Sums& sums, uint32 vectors) {
  Squares squares;
  const auto keep = [&](int i, int half, const Pixel&, float found) { squares[i][half] = found; };
  add_up_all(params, place, block, first_patch, sums, vectors, keep);
  exchange(shared, squares, block, first_patch, mine, turn);
  // Where the pixels are is found again: kept in registers, it would push the sums out.
  asm volatile("" : "+r"(place.y), "+r"(place.x));
#pragma unroll
  for (int i = 0; i < kOwnPatches; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Pixel pixel = pixel_at(params, place, block, first_patch + i, half);
      store_pixel(params, place, pixel, sums[i], half, squares[i][half], vectors);
    }
  }
}

// ---- all of it ----------------------------------------------------------------------------------

// A phase's parity tells two neighbors apart and no more, so with turns neither warpgroup may wait for
// stages that the other has yet to see: each hands the tensor cores over.
__device__ __forceinline__ void take_turn(int mine) { named_sync(1 + mine, 2 * kWarpgroup); }
__device__ __forceinline__ void give_turn(int mine) { named_arrive(2 - mine, 2 * kWarpgroup); }

__device__ __forceinline__ void consume(const Params& params, const Shared& shared, int units,
                                        int block, int mine) {
  const int first_patch = kTurns ? 0 : mine * kOwnPatches;
  const int first_pixel = first_patch / kPatchColumns * kSide * kTileColumns +
                          first_patch % kPatchColumns * kSide;
  const uint64 tile = plain_descriptor(shared_address(shared.tiles) + first_pixel * kPiece,
                                       kPlaneBytes, kRowBytes);
  const uint64 weights =
      plain_descriptor(shared_address(shared.weights), kBlock * kPiece, kSide * kPiece);
  const uint32 vectors = shared_address(shared.vectors) + lane_id() % 4 * 32;
  Rings rings{{0, 0}, {0, 0}};
  Sums sums;
  int turn = 0;
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x, ++turn) {
    if (kTurns && (turn & 1) != mine) {
      rings.tiles.skip<kTilesOfUnit>();
      rings.weights.skip<kWeightsOfUnit>();
      continue;
    }
    clear(sums);
    if (kTurns && turn > 0) take_turn(mine);
    multiply_unit(sums, shared, rings, tile, weights);
    if (kTurns && unit + static_cast<int>(gridDim.x) < units) give_turn(mine);
#pragma unroll
    for (int i = 0; i < kOwnPatches; ++i) pin(sums[i]);
    const Place place = place_of(params, unit);
    if constexpr (LL_OFFSETS) correct_all(sums, params, place, block, first_patch);
    if constexpr (LL_PAIR) {
      finish_together(params, shared, place, block, first_patch, mine, turn, sums, vectors);
    } else {
      finish(params, place, block, first_patch, sums, vectors);
    }
  }
}

}  // namespace

#if LL_PAIR
#define LL_CLUSTER __cluster_dims__(2, 1, 1)
#else
#define LL_CLUSTER
#endif

extern "C" __global__ void LL_CLUSTER __launch_bounds__(3 * kWarpgroup, 1)
    vae_conv(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8 memory[];
  const Shared shared = shared_parts(memory);
  const int block = blockIdx.x % params.blocks;  // the grid is a multiple of them
  if (threadIdx.x == 0) {
    for (int i = 0; i < LL_TILE_STAGES; ++i) {
      barrier_init(shared.tile_is_full + i, 1);
      barrier_init(shared.tile_is_free + i, kLeaving);
    }
    for (int i = 0; i < LL_WEIGHT_STAGES; ++i) {
      barrier_init(shared.weight_is_full + i, 1);
      barrier_init(shared.weight_is_free + i, kLeaving);
    }
    for (int i = 0; i < 2 * kLetterBoxes; ++i) {
      barrier_init(shared.letters_came + i, kWarpgroup / 32);
    }
    fence_barrier_init();
  }
  load_vectors(params, shared.vectors, block);
  __syncthreads();
  if constexpr (LL_PAIR) cluster_sync();  // nobody sends before the other is ready
  const int units = unit_count(params);
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    shrink_registers<24>();
    if (threadIdx.x == 0) load_tiles(params, shared, units);
    if (threadIdx.x == 32) load_weights(params, shared, units, block);
  } else {
    grow_registers<240>();
    consume(params, shared, units, block, warpgroup - 1);
  }
  if constexpr (LL_PAIR) {
    __syncwarp();
    cluster_sync();  // nobody leaves while the other sends to it
  }
}
