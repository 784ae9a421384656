// Copies of two axes, one that arrives in all blocks of a cluster, and what its sender waits for.
#pragma once

#include "attention/hopper.cuh"

__device__ __forceinline__ void load_box(void* destination, const TensorMap* map, uint64* barrier,
                                         int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
      : "memory");
}

// At the same place in each block of `blocks`, a bit for each, whose own barrier is told.
__device__ __forceinline__ void load_box_for_all(void* destination, const TensorMap* map,
                                                 uint64* barrier, uint16 blocks, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "h"(blocks), "r"(c0), "r"(c1)
      : "memory");
}

// Says that the copy engine may write. Nothing that was stored is handed over by it, so nothing has to
// be seen by the other block first, which would hold up the warp.
__device__ __forceinline__ void barrier_free_remote(uint32 remote) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory");
}
