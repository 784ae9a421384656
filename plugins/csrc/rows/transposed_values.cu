// Values to the transposed 8-bit layout that attention reads, [batch, heads, head_dim, pitch] bytes.
//
// LL_BYTES 1: they are float8 E4M3 already, and only change places.
//
// LL_PLUGIN 1: as TensorRT launches it, with pointers and integers for arguments.
#include "rows/value_tile.cuh"

#ifndef LL_BYTES
#define LL_BYTES 0
#endif
#ifndef LL_PLUGIN
#define LL_PLUGIN 0
#endif

namespace {

constexpr int kThreads = 256;
#if LL_BYTES
using Loaded = uint2;
#else
using Loaded = uint4;
#endif

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
static_assert(sizeof(Params) == 88, "as plugins/kernels/values.py lays it out");

__device__ __forceinline__ void transpose(const Params& params) {
  const int head = blockIdx.y % params.heads;
  const int batch = blockIdx.y / params.heads;
  HeadValues values;
  values.source = params.input + batch * params.input_batch_bytes + head * params.input_head_bytes;
  values.token_bytes = params.input_token_bytes;
  values.tokens = params.tokens;
  values.target =
      params.output + batch * params.output_batch_bytes + head * params.output_head_bytes;
  values.row_bytes = params.output_row_bytes;
  values.first_token = params.first_token;
  values.factor = LL_BYTES ? 1.0f : 1.0f / params.scale[head];
  transpose_tile<Loaded, kThreads>(values, blockIdx.x);
}

}  // namespace

#if LL_PLUGIN
extern "C" __global__ void __launch_bounds__(kThreads)
    transposed_values_plugin(const uint8* input, int heads, int tokens, int pitch, uint8* output) {
  Params params{};
  params.input = input;
  params.output = output;
  params.input_head_bytes = kValueDim;
  params.input_token_bytes = static_cast<int64>(heads) * kValueDim;
  params.input_batch_bytes = params.input_token_bytes * tokens;
  params.output_row_bytes = pitch;
  params.output_head_bytes = static_cast<int64>(kValueDim) * pitch;
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
