// Another order of the work on a block, for 8 bits: its exponentials in two halves. What the tensor cores
// finish meanwhile is added, and the first half is rounded, while the special function unit, which gives
// four a cycle where others give 32, works on the second. Compiled with LL_HALVES.
#pragma once

#include "attention/attention_tile.cuh"

namespace {

static_assert(kBytes && kPipelined && kPromotedBlocks == 2, "as the loop is written");

// As Wgmma<kE4M3, 128>::registers, but what the accumulators held is forgotten.
__device__ __forceinline__ void multiply_anew(float (&d)[64], const uint32* a, uint64 b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " LL_D_128
      ", {%64, %65, %66, %67}, %68, p, 1, 1;\n}\n"
      : LL_O_128(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// Of one of a thread's two rows: replaces its maximum if it grew enough; `factor` is what earlier sums
// must be multiplied by. Returns what is taken from scores. `softmax_step` has it written out: calling
// this there changes the machine code of kernels that were measured.
__device__ __forceinline__ float update_maximum(const float (&scores)[kScores], int half,
                                                RowState& state, float (&factor)[2],
                                                const RowScales& scales) {
  float maximum = scores[2 * half];
#pragma unroll
  for (int i = 0; i < kScores; i += 4) {
    maximum = fmaxf(maximum, fmaxf(scores[i + 2 * half], scores[i + 2 * half + 1]));
  }
  maximum = quad_max(maximum);
  const float previous = state.maximum[half];
  const float scale_log2 = scales[half];
  const bool grew = (maximum - previous) * scale_log2 > kRescaleLimit;
  state.maximum[half] = grew ? maximum : previous;
  factor[half] = grew ? exp2_approx((previous - maximum) * scale_log2) : 1.0f;
  return state.maximum[half] * scale_log2 - kProbabilityExponent;
}

// Turns a row's scores from `kBegin` to `kEnd` into unnormalized probabilities, and adds them to `sums`.
template <int kBegin, int kEnd>
__device__ __forceinline__ void exponentiate(float (&scores)[kScores], int half, float offset,
                                             float scale_log2, float (&sums)[2]) {
#pragma unroll
  for (int i = kBegin; i < kEnd; i += 4) {
    float& a = scores[i + 2 * half];
    float& b = scores[i + 2 * half + 1];
    a = exp2_approx(fmaf(a, scale_log2, -offset));
    b = exp2_approx(fmaf(b, scale_log2, -offset));
    sums[0] += a;
    sums[1] += b;
  }
}

// Of 8 bits, columns 8i + 2t + e of a thread become bytes 4t + 2i + e: the order in which V is stored.
template <int kBegin, int kEnd>
__device__ __forceinline__ void pack_bytes(const float (&scores)[kScores],
                                           uint32 (&packed)[kPacked]) {
#pragma unroll
  for (int step = kBegin / 16; step < kEnd / 16; ++step) {
    const float* s = scores + 16 * step;
    packed[4 * step] = pack_e4m3(s[0], s[1], s[4], s[5]);
    packed[4 * step + 1] = pack_e4m3(s[2], s[3], s[6], s[7]);
    packed[4 * step + 2] = pack_e4m3(s[8], s[9], s[12], s[13]);
    packed[4 * step + 3] = pack_e4m3(s[10], s[11], s[14], s[15]);
  }
}

// A block's products with its values, which begin the sums (`kFirst`) or are added to them.
template <bool kFirst>
__device__ __forceinline__ void start_sums(Consumer& consumer, float (&sums)[kOutputs],
                                           const uint32 (&probabilities)[kPacked],
                                           const Ring& at) {
  if constexpr (!kFirst) {
    consumer.start_outputs(sums, probabilities, at);
  } else {
    barrier_wait(&consumer.barriers->value_full[at.stage], at.phase);
    const uint32 values = consumer.values + at.stage * kStageBytes;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileKeys / kStepKeys; ++step) {
      const uint32 panel = step * 32 / kValuePanel;
      const uint64 descriptor = matrix_descriptor<kValuePanel>(
          values + panel * kHeadDim * kValuePanel + step * 32 % kValuePanel);
      if (step == 0) {
        multiply_anew(sums, probabilities, descriptor);
      } else {
        Wgmma<kE4M3, kHeadDim>::registers(sums, probabilities + 4 * step, descriptor);
      }
    }
    wgmma_commit();
  }
}

// The next block's scores, and the outputs of the one before: the first of two (`kFirst`) begins
// sums of their own, the second completes them.
template <bool kFirst>
__device__ __forceinline__ void attend_next(Consumer& consumer, float (&scores)[kScores],
                                            uint32 (&probabilities)[kPacked],
                                            float (&outputs)[kOutputs],
                                            float (&two_blocks)[kOutputs], RowState& state,
                                            const RowScales& scales) {
  const Ring previous = consumer.ring;
  consumer.ring.advance();
  consumer.wait_keys();
  turn_begin(consumer.warpgroup);
  consumer.start_scores(scores);
  start_sums<kFirst>(consumer, two_blocks, probabilities, previous);
  turn_end(consumer.warpgroup);
  wgmma_wait<1>();
  consumer.finish_scores(scores);
  float factor[2], offset[2];
  float sums[2][2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    offset[half] = update_maximum(scores, half, state, factor, scales);
    exponentiate<0, kScores / 2>(scores, half, offset[half], scales[half], sums[half]);
  }
  wgmma_wait<0>();
  consumer.finish_outputs(two_blocks, probabilities, previous);
  rescale(two_blocks, factor);
  rescale(outputs, factor);
  if constexpr (!kFirst) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) outputs[i] += two_blocks[i];
  }
  pack_bytes<0, kScores / 2>(scores, probabilities);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    exponentiate<kScores / 2, kScores>(scores, half, offset[half], scales[half], sums[half]);
    state.sum[half] = state.sum[half] * factor[half] + (sums[half][0] + sums[half][1]);
  }
  pack_bytes<kScores / 2, kScores>(scores, probabilities);
}

// What `Consumer::attend` does, in halves.
__device__ __forceinline__ void attend_in_halves(Consumer& consumer, int blocks, float (&outputs)[kOutputs],
                                                 RowState& state, const RowScales& scales) {
  float scores[kScores];
  uint32 probabilities[kPacked];
  float factor[2];
  float two_blocks[kOutputs];
  clear(two_blocks);
  consumer.wait_keys();
  turn_begin(consumer.warpgroup);
  consumer.start_scores(scores);
  turn_end(consumer.warpgroup);
  consumer.release_queries();
  wgmma_wait<0>();
  consumer.finish_scores(scores);
  softmax_step(scores, state, factor, scales);
  pack_probabilities(scores, probabilities);
#pragma unroll 1
  for (int pair = 0; pair < (blocks - 1) / 2; ++pair) {
    attend_next<true>(consumer, scores, probabilities, outputs, two_blocks, state, scales);
    attend_next<false>(consumer, scores, probabilities, outputs, two_blocks, state, scales);
  }
  if (blocks % 2 == 0) {
    attend_next<true>(consumer, scores, probabilities, outputs, two_blocks, state, scales);
  } else {
    clear(two_blocks);
  }
  consumer.start_outputs(two_blocks, probabilities, consumer.ring);
  wgmma_wait<0>();
  consumer.finish_outputs(two_blocks, probabilities, consumer.ring);
  promote(outputs, two_blocks);
  consumer.ring.advance();
}

}  // namespace
