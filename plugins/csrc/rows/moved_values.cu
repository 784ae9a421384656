// Tokens of values that lie transposed (value_tile.cuh), from one place to another of the same layout.
//
// A thread writes one group of sixteen tokens of one row. Where source and target differ by a multiple of
// eight tokens, a group's words are halves of the source's; any other group, and one that other tokens
// share, is written byte by byte.
#include "rows/value_tile.cuh"

namespace {

constexpr int kThreads = 256;

struct Params {
  const uint8* input;  // [rows, input_pitch]
  uint8* output;
  int64 input_pitch;
  int64 output_pitch;
  int rows;
  int tokens;
  int input_first;  // tokens
  int output_first;
};
static_assert(sizeof(Params) == 48, "as plugins/kernels/values.py lays it out");

__device__ __forceinline__ int64 place(int token) { return token / 16 * 16 + value_position(token % 16); }

__device__ __forceinline__ uint4 group_at(const uint8* line, int token) {
  return *reinterpret_cast<const uint4*>(line + token / 16 * 16);
}

// The second half of a group, and the first of the next one.
__device__ __forceinline__ uint4 joined(const uint4& a, const uint4& b) {
  return make_uint4(__byte_perm(a.x, b.x, 0x5432), __byte_perm(a.y, b.y, 0x5432),
                    __byte_perm(a.z, b.z, 0x5432), __byte_perm(a.w, b.w, 0x5432));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    moved_values(const __grid_constant__ Params params) {
  const int first_group = params.output_first / 16;
  const int groups = (params.output_first + params.tokens - 1) / 16 - first_group + 1;
  const int64 index = static_cast<int64>(blockIdx.x) * kThreads + threadIdx.x;
  const int64 row = index / groups;
  if (row >= params.rows) return;
  const int start = (first_group + static_cast<int>(index % groups)) * 16;
  const int apart = params.input_first - params.output_first;
  const uint8* source = params.input + row * params.input_pitch;
  uint8* target = params.output + row * params.output_pitch;
  const int first = larger(start, params.output_first);
  const int last = smaller(start + 16, params.output_first + params.tokens);
  if (last - first == 16 && apart % 8 == 0) {
    const int token = start + apart;
    const uint4 group = group_at(source, token);
    *reinterpret_cast<uint4*>(target + start) =
        token % 16 == 0 ? group : joined(group, group_at(source, token + 8));
    return;
  }
  for (int token = first; token < last; ++token) target[place(token)] = source[place(token + apart)];
}
