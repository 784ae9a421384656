// Which part of the problem a thread block computes, decided from lengths that only the device knows.
//
// A tile is a group of query rows of one head. Blocks take whole tiles while there are enough for
// every block; what remains is cut along the keys into equal shares, so that no multiprocessor idles
// in a partly filled last wave. The shares of one tile are summed in a fixed order. When there are
// too few keys for that to pay, the remaining tiles are cut along their rows instead.
#pragma once

#include "common/basics.cuh"

constexpr int kMaxPieces = 3;
constexpr int kWorthSplitting = 6;  // key blocks saved per tile before a split pays for its sums
constexpr int kLeastShare = 3;      // key blocks that a share holds at least

struct PieceLengths {
  int valid[kMaxPieces];
  int blocks[kMaxPieces];
  int total_blocks;
};

template <int kTileKeys>
__device__ __forceinline__ PieceLengths read_lengths(const int64* const (&lengths)[kMaxPieces],
                                                     const int (&capacities)[kMaxPieces]) {
  PieceLengths pieces;
  pieces.total_blocks = 0;
#pragma unroll
  for (int i = 0; i < kMaxPieces; ++i) {
    int64 valid = capacities[i];
    if (lengths[i] != nullptr) valid = smaller<int64>(valid, larger<int64>(0, *lengths[i]));
    pieces.valid[i] = static_cast<int>(valid);
    pieces.blocks[i] = ceil_div(pieces.valid[i], kTileKeys);
    pieces.total_blocks += pieces.blocks[i];
  }
  return pieces;
}

// What the last valid key's score gains where it counts for all keys behind it too.
__device__ __forceinline__ float score_of_rest(int capacity, int valid, float scale_log2) {
  return log2f(static_cast<float>(capacity - valid + 1)) / scale_log2;
}

// Walks the key blocks of all pieces in order.
template <int kTileKeys>
struct KeyCursor {
  int piece;
  int row;

  __device__ __forceinline__ KeyCursor(const PieceLengths& pieces, int block) : piece(0) {
#pragma unroll
    for (int i = 0; i < kMaxPieces - 1; ++i) {
      if (piece == i && block >= pieces.blocks[i]) {
        block -= pieces.blocks[i];
        piece = i + 1;
      }
    }
    row = block * kTileKeys;
  }

  __device__ __forceinline__ int valid_rows(const PieceLengths& pieces) const {
    int valid = pieces.valid[0];
    if (piece == 1) valid = pieces.valid[1];
    if (piece == 2) valid = pieces.valid[2];
    return smaller(kTileKeys, valid - row);
  }

  __device__ __forceinline__ void advance(const PieceLengths& pieces) {
    row += kTileKeys;
#pragma unroll
    for (int i = 0; i < kMaxPieces - 1; ++i) {
      if (piece == i && row >= pieces.valid[i]) {
        piece = i + 1;
        row = 0;
      }
    }
  }
};

// One thread block's part of one tile.
struct Segment {
  int tile;          // negative: no more work
  int first_row;     // of the tile
  int rows;
  int first_block;
  int blocks;
  int shares;        // how many thread blocks work on this tile
  int first_sharer;  // the thread block that holds share 0; the others follow it
  int first_slot;    // where share 0 leaves its sums
  int remainder;     // index among the shared tiles
};

template <int kWarpgroups>
class Schedule {
 public:
  __device__ __forceinline__ Schedule(int tiles, int key_blocks, bool may_split)
      : key_blocks_(key_blocks), next_(blockIdx.x), grid_(gridDim.x) {
    const int left = tiles % grid_;
    const int64 left_blocks = static_cast<int64>(left) * key_blocks;
    sharers_ = static_cast<int>(larger<int64>(1, smaller<int64>(grid_, left_blocks / kLeastShare)));
    const int saved = key_blocks - static_cast<int>(left_blocks / sharers_);
    const bool split = may_split && left > 0 && saved > kWorthSplitting;
    whole_tiles_ = tiles - left;
    row_cuts_ = left * kWarpgroups <= grid_ ? kWarpgroups : left * 2 <= grid_ ? 2 : 1;
    row_shares_ = split ? 0 : left * row_cuts_;
    shared_blocks_ = split ? left_blocks : 0;
    const int sharer = smaller(static_cast<int>(blockIdx.x), sharers_);
    position_ = first_of(sharer);
    limit_ = first_of(smaller(sharer + 1, sharers_));
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (next_ < whole_tiles_) {
      segment = {next_, 0, 64 * kWarpgroups, 0, key_blocks_, 1, 0, 0, 0};
      next_ += grid_;
      return true;
    }
    if (next_ < whole_tiles_ + row_shares_) {
      const int share = next_ - whole_tiles_;
      const int rows = 64 * ceil_div(kWarpgroups, row_cuts_);
      const int first_row = share % row_cuts_ * rows;
      segment = {whole_tiles_ + share / row_cuts_, first_row,
                 smaller(rows, 64 * kWarpgroups - first_row), 0, key_blocks_, 1, 0, 0, 0};
      next_ += grid_;
      return true;
    }
    if (position_ >= limit_) return false;
    const int remainder = static_cast<int>(position_ / key_blocks_);
    const int64 start = static_cast<int64>(remainder) * key_blocks_;
    const int64 end = smaller(limit_, start + key_blocks_);
    segment.tile = whole_tiles_ + remainder;
    segment.first_row = 0;
    segment.rows = 64 * kWarpgroups;
    segment.first_block = static_cast<int>(position_ - start);
    segment.blocks = static_cast<int>(end - position_);
    segment.first_sharer = owner(start);
    segment.shares = owner(start + key_blocks_ - 1) - segment.first_sharer + 1;
    // A thread block holds shares of at most two tiles: the end of one and the start of the next.
    const int64 begin = first_of(segment.first_sharer);
    segment.first_slot = 2 * segment.first_sharer + (begin < start ? 1 : 0);
    segment.remainder = remainder;
    position_ = end;
    return true;
  }

 private:
  __device__ __forceinline__ int64 first_of(int sharer) const {
    return shared_blocks_ * sharer / sharers_;
  }

  // The sharer whose range holds a position; every sharer has a range, as shares are never empty.
  __device__ __forceinline__ int owner(int64 position) const {
    return static_cast<int>(((position + 1) * sharers_ - 1) / shared_blocks_);
  }

  int key_blocks_;
  int next_;
  int grid_;
  int whole_tiles_;
  int row_cuts_;
  int row_shares_;
  int sharers_;
  int64 shared_blocks_;
  int64 position_;
  int64 limit_;
};

__device__ __forceinline__ int partial_slot(const Segment& segment, int share) {
  return share == 0 ? segment.first_slot : 2 * (segment.first_sharer + share);
}
