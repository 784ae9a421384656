// 16-bit numbers to float8 E4M3, all with one factor, eight neighbors to a thread.
#include "common/vectors.cuh"

namespace {

struct Params {
  const uint4* input;
  uint2* output;
  int64 vectors;
  float factor;
};
static_assert(sizeof(Params) == 32, "as plugins/kernels/quantize.py lays it out");

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    quantize(const __grid_constant__ Params params) {
  const int64 vector = vector_index();
  if (vector >= params.vectors) return;
  params.output[vector] = pack_bytes_e4m3(unpack(params.input[vector]), params.factor);
}
