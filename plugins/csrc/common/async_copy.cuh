// Sixteen-byte copies from global to shared memory that every architecture since Ampere has.
#pragma once

#include "common/basics.cuh"

// Copies nothing and writes zeros when `wanted` is false.
__device__ __forceinline__ void copy_chunk(uint32 destination, const void* source, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(wanted ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
