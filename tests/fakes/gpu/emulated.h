// One Hopper GPU on a CPU, as far as the emulated sources ask for it: every thread of a few thread
// blocks is a thread here. Barriers count arrivals and bytes as mbarriers do. Products of matrices
// are computed when they are waited for, and not before: what is freed too early is seen.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

using int8 = signed char;
using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

enum ElementKind { kBfloat16 = 0, kFloat16 = 1, kE4M3 = 2, kInt8 = 3 };

struct Index {
  unsigned x, y;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

struct uint2 {
  uint32 x, y;
};
struct alignas(16) uint4 {
  uint32 x, y, z, w;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32 x, uint32 y) { return {x, y}; }
inline uint4 make_uint4(uint32 x, uint32 y, uint32 z, uint32 w) { return {x, y, z, w}; }

namespace emulated {

// Arrivals of a phase, and bytes that are still to come.
struct Barrier {
  int arrivals = 0, missing = 0;
  int64 bytes = 0;
  std::atomic<uint32> phase{0};
};

struct Meeting {
  unsigned arrived = 0;
  uint64 round = 0;
};

constexpr int kOffsetBits = 24;  // of an address in shared memory

struct Block {
  explicit Block(size_t bytes, int rank) : memory(bytes + 1024), rank(rank) {}
  std::vector<uint8> memory;
  int rank;  // in its cluster
  Block* peer = nullptr;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::unique_ptr<Barrier>> barriers;
  Meeting named[17];  // the last one is __syncthreads
  Meeting warps[32];
  Meeting groups[1024];  // of lanes, by the number of the first one
  float exchanged[1024];
  uint32 fragments[1024][6];  // of both operands of a warp's product
  alignas(16) uint8 fixed[48 << 10];  // arrays in shared memory that the source declares

  uint8* base() {
    const auto start = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (1024 - start % 1024) % 1024;
  }
};

inline thread_local Block* here = nullptr;

// What a thread means by an address: its own block's memory, or that of the other one of a cluster.
inline uint8* memory_at(uint32 address) {
  Block* block = static_cast<int>(address >> kOffsetBits) == here->rank ? here : here->peer;
  return block->base() + (address & ((1u << kOffsetBits) - 1));
}

struct Product {
  std::function<void()> run;
};
inline thread_local std::vector<std::vector<Product>> groups;
inline thread_local std::vector<Product> open_group;
// Threads that waited too long; nobody waits any more then.
inline std::atomic<int> stuck{0};
inline std::atomic<int> letters_to_oneself{0};

template <typename Done>
void wait_until(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Done done) {
  while (!stuck && !done()) {
    if (changed.wait_for(lock, std::chrono::seconds(60)) == std::cv_status::timeout && !done()) {
      ++stuck;
    }
  }
}

inline void meet(Meeting& meeting, unsigned count, bool waits) {
  std::unique_lock lock(here->mutex);
  const uint64 round = meeting.round;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.round;
    here->changed.notify_all();
  } else if (waits) {
    wait_until(here->changed, lock, [&] { return meeting.round != round; });
  }
}

inline Barrier& barrier_at(Block& block, uint64* address) { return *block.barriers[*address]; }

inline void settle(Block& block, Barrier& barrier) {
  if (barrier.missing == 0 && barrier.bytes == 0) {
    barrier.missing = barrier.arrivals;
    ++barrier.phase;
    block.changed.notify_all();
  }
}

inline void arrive(Block& block, uint64* address, int64 expected = 0) {
  std::lock_guard lock(block.mutex);
  Barrier& barrier = barrier_at(block, address);
  barrier.bytes += expected;
  --barrier.missing;
  settle(block, barrier);
}

inline void complete(Block& block, uint64* address, int64 bytes) {
  std::lock_guard lock(block.mutex);
  Barrier& barrier = barrier_at(block, address);
  barrier.bytes -= bytes;
  settle(block, barrier);
}

inline void wait(uint64* address, uint32 parity) {
  Barrier& barrier = barrier_at(*here, address);
  if ((barrier.phase & 1) != parity) return;
  std::unique_lock lock(here->mutex);
  wait_until(here->changed, lock, [&] { return (barrier.phase & 1) != parity; });
}

inline float from_e4m3(uint8 bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 127) == 127) return NAN;
  const float size = exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(float(fraction), -9);
  return bits & 128 ? -size : size;
}

inline uint8 to_e4m3(float x) {
  if (std::isnan(x)) return 127;
  const uint8 sign = std::signbit(x) ? 128 : 0;
  const float size = std::fmin(std::fabs(x), 448.0f);
  int exponent = size > 0 ? std::ilogb(size) : -6;
  if (exponent < -6) exponent = -6;
  int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
  if (steps == 16) steps = 8, ++exponent;
  return sign | (steps < 8 ? steps : ((exponent + 7) << 3 | (steps - 8)));
}

inline float element(uint8 bits, int kind) {
  static const auto table = [] {
    std::vector<float> values(256);
    for (int i = 0; i < 256; ++i) values[i] = from_e4m3(i);
    return values;
  }();
  return kind == kInt8 ? static_cast<float>(static_cast<int8>(bits)) : table[bits];
}

// Where 128 bytes are a swizzle: 16 bytes of a row change places with others of it.
inline int64 swizzled(int64 offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Row by 32 bytes: in blocks of eight rows by 16 bytes, or part of rows of 128 bytes.
inline const uint8* operand(uint64 descriptor, int row, int piece) {
  const int start = (descriptor & 0x3fff) << 4, pieces_apart = (descriptor >> 16 & 0x3fff) << 4;
  const int rows_apart = (descriptor >> 32 & 0x3fff) << 4;
  const int group = start + row / 8 * rows_apart;
  if (descriptor >> 62 == 1) return here->base() + swizzled(group + row % 8 * 128 + piece * 16);
  return here->base() + group + row % 8 * 16 + piece * pieces_apart;
}

// A thread's own part of D[64, columns] += A[64, 32] B[columns, 32].
template <int kKind, int kColumns>
void multiply(float* sums, uint64 a, uint64 b) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  for (int half = 0; half < 2; ++half) {
    float row[32];
    for (int k = 0; k < 32; ++k) {
      row[k] = element(operand(a, warp * 16 + lane / 4 + 8 * half, k / 16)[k % 16], kKind);
    }
    for (int eight = 0; eight < kColumns / 8; ++eight) {
      for (int parity = 0; parity < 2; ++parity) {
        float sum = 0;
        for (int piece = 0; piece < 2; ++piece) {
          const uint8* column = operand(b, eight * 8 + lane % 4 * 2 + parity, piece);
          for (int k = 0; k < 16; ++k) sum += row[16 * piece + k] * element(column[k], kKind);
        }
        float& target = sums[4 * eight + 2 * half + parity];
        if (kKind == kInt8) {
          int bits;
          std::memcpy(&bits, &target, 4);
          bits += static_cast<int>(sum);
          std::memcpy(&target, &bits, 4);
        } else {
          target += sum;
        }
      }
    }
  }
}

// What a tensor map says, as the test packs it.
struct Map {
  const uint8* data;
  int64 sizes[5];
  int64 strides[4];
  int box[5];
};

}  // namespace emulated

// ---- basics -------------------------------------------------------------------------------------

template <typename T>
constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}
inline constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
// As Hopper counts: the rank of a block in its cluster lies above the offset.
inline uint32 shared_address(const void* pointer) {
  const auto offset = static_cast<const uint8*>(pointer) - emulated::here->base();
  return emulated::here->rank << emulated::kOffsetBits | static_cast<uint32>(offset);
}
inline float __uint_as_float(uint32 bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline uint32 __float_as_uint(float value) { return static_cast<uint32>(__float_as_int(value)); }
template <typename T>
constexpr T larger(T a, T b) {
  return a > b ? a : b;
}
inline uint32 __byte_perm(uint32 a, uint32 b, uint32 selector) {
  const uint64 bytes = static_cast<uint64>(b) << 32 | a;
  uint32 chosen = 0;
  for (int i = 0; i < 4; ++i) {
    chosen |= static_cast<uint32>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return chosen;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline void __syncthreads() { emulated::meet(emulated::here->named[16], blockDim.x, true); }
inline void __syncwarp() { emulated::meet(emulated::here->warps[threadIdx.x / 32], 32, true); }
inline int lane_id() { return threadIdx.x % 32; }
inline float __shfl_xor_sync(uint32 lanes, float x, int offset) {
  const unsigned count = __builtin_popcount(lanes);
  emulated::Meeting& group = emulated::here->groups[threadIdx.x / count * count];
  emulated::here->exchanged[threadIdx.x] = x;
  emulated::meet(group, count, true);
  const float other = emulated::here->exchanged[threadIdx.x ^ offset];
  emulated::meet(group, count, true);
  return other;
}
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
inline uint32 __vmaxs2(uint32 a, uint32 b) {
  int16_t ours[2], theirs[2];
  std::memcpy(ours, &a, 4);
  std::memcpy(theirs, &b, 4);
  for (int i = 0; i < 2; ++i) ours[i] = ours[i] > theirs[i] ? ours[i] : theirs[i];
  std::memcpy(&a, ours, 4);
  return a;
}
inline float quad_sum(float x) {
  float* all = emulated::here->exchanged;
  all[threadIdx.x] = x;
  __syncwarp();
  const float* quad = all + threadIdx.x / 4 * 4;
  const float sum = (quad[0] + quad[1]) + (quad[2] + quad[3]);
  __syncwarp();
  return sum;
}

// ---- vectors ------------------------------------------------------------------------------------

#ifndef LL_DIM
#define LL_DIM 8
#endif
#ifndef LL_ELEMENT
#define LL_ELEMENT 1
#endif
constexpr int kElement = LL_ELEMENT;
constexpr int kDim = LL_DIM;
struct Eight {
  float value[8];
};
inline void unpack_halves(uint32 packed, float& low, float& high) {
  if (kElement == kBfloat16) {
    low = __uint_as_float(packed << 16), high = __uint_as_float(packed & 0xffff0000u);
    return;
  }
  _Float16 halves[2];
  std::memcpy(halves, &packed, 4);
  low = halves[0], high = halves[1];
}
template <int>
uint32 pack_halves(float low, float high) {
  const _Float16 halves[2] = {static_cast<_Float16>(low), static_cast<_Float16>(high)};
  uint32 packed;
  std::memcpy(&packed, halves, 4);
  return packed;
}
inline Eight unpack(const uint4& words) {
  Eight e;
  unpack_halves(words.x, e.value[0], e.value[1]);
  unpack_halves(words.y, e.value[2], e.value[3]);
  unpack_halves(words.z, e.value[4], e.value[5]);
  unpack_halves(words.w, e.value[6], e.value[7]);
  return e;
}
inline float total(const Eight& e) {
  float sum = 0;
  for (float value : e.value) sum += value;
  return sum;
}
inline uint4 pack(const Eight& e) {
  const float* v = e.value;
  return {pack_halves<0>(v[0], v[1]), pack_halves<0>(v[2], v[3]), pack_halves<0>(v[4], v[5]),
          pack_halves<0>(v[6], v[7])};
}
template <typename Round>
uint2 packed_bytes(const Eight& e, const Round& round) {
  uint8 bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = round(e.value[i]);
  uint2 words;
  std::memcpy(&words, bytes, 8);
  return words;
}
inline uint32 pack_e4m3(float b0, float b1, float b2, float b3) {
  const uint8 bytes[4] = {emulated::to_e4m3(b0), emulated::to_e4m3(b1), emulated::to_e4m3(b2),
                          emulated::to_e4m3(b3)};
  uint32 packed;
  std::memcpy(&packed, bytes, 4);
  return packed;
}
inline uint2 pack_bytes_e4m3(const Eight& e, float factor) {
  return packed_bytes(e, [=](float x) { return emulated::to_e4m3(x * factor); });
}
inline uint2 pack_bytes_int8(const Eight& e, float factor, int zero = 0) {
  return packed_bytes(e, [=](float x) {
    const float steps = std::fmin(std::fmax(std::nearbyint(x * factor) + zero, -127.0f), 127.0f);
    return static_cast<uint8>(static_cast<int8>(steps));
  });
}

// ---- products by one warp -----------------------------------------------------------------------

namespace emulated {

inline float half_of(unsigned thread, int word, int k) {
  float halves[2];
  unpack_halves(here->fragments[threadIdx.x / 32 * 32 + thread][word], halves[0], halves[1]);
  return halves[k % 2];
}

}  // namespace emulated

template <int>
void multiply_add(float* d, const uint32* a, uint32 b0, uint32 b1) {
  uint32* own = emulated::here->fragments[threadIdx.x];
  std::memcpy(own, a, 4 * sizeof *a);
  own[4] = b0, own[5] = b1;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane_id() / 4 + i / 2 * 8, column = lane_id() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const float left = emulated::half_of(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k);
      d[i] += left * emulated::half_of(column * 4 + k % 8 / 2, 4 + k / 8, k);
    }
  }
  __syncwarp();
}

// ---- asynchronous machinery ---------------------------------------------------------------------

struct alignas(64) TensorMap {
  uint8 opaque[128];
};
static_assert(sizeof(emulated::Map) <= sizeof(TensorMap), "it takes a map's place");

inline void barrier_init(uint64* barrier, int arrivals) {
  auto& barriers = emulated::here->barriers;
  *barrier = barriers.size();
  barriers.push_back(std::make_unique<emulated::Barrier>());
  barriers.back()->arrivals = barriers.back()->missing = arrivals;
}
inline void barrier_arrive(uint64* barrier) { emulated::arrive(*emulated::here, barrier); }
inline void barrier_expect_bytes(uint64* barrier, uint32 bytes) {
  emulated::arrive(*emulated::here, barrier, bytes);
}
inline void barrier_wait(uint64* barrier, uint32 parity) { emulated::wait(barrier, parity); }
inline void barrier_wait_cluster(uint64* barrier, uint32 parity) { emulated::wait(barrier, parity); }
inline void fence_barrier_init() {}
inline void named_sync(int id, int threads) {
  emulated::meet(emulated::here->named[id], threads, true);
}
inline void named_arrive(int id, int threads) {
  emulated::meet(emulated::here->named[id], threads, false);
}
template <int>
void grow_registers() {}
template <int>
void shrink_registers() {}

inline void load_box(void* destination, const TensorMap* packed, uint64* barrier, int c0, int c1,
                     int c2, int c3, int c4) {
  emulated::Map map;
  std::memcpy(&map, packed, sizeof map);
  const int64 start[5] = {c0, c1, c2, c3, c4};
  uint8* base = emulated::here->base();
  const int64 offset = static_cast<uint8*>(destination) - base;
  const bool swizzles = map.box[0] == 128;
  int64 count = 1;
  for (int size : map.box) count *= size;
  for (int64 i = 0; i < count; ++i) {
    int64 rest = i, from = 0;
    bool inside = true;
    for (int axis = 0; axis < 5; ++axis) {
      const int64 at = start[axis] + rest % map.box[axis];
      rest /= map.box[axis];
      inside = inside && at >= 0 && at < map.sizes[axis];
      from += at * (axis ? map.strides[axis - 1] : 1);
    }
    base[swizzles ? emulated::swizzled(offset + i) : offset + i] = inside ? map.data[from] : 0;
  }
  emulated::complete(*emulated::here, barrier, count);
}

inline void load_box(void* destination, const TensorMap* map, uint64* barrier, int c0, int c1) {
  load_box(destination, map, barrier, c0, c1, 0, 0, 0);
}

inline void load_bytes(void* destination, const void* source, uint32 bytes, uint64* barrier) {
  std::memcpy(destination, source, bytes);
  emulated::complete(*emulated::here, barrier, bytes);
}

// ---- clusters -----------------------------------------------------------------------------------

inline uint32 remote_address(const void* address, int rank) {
  if (rank == emulated::here->rank) ++emulated::letters_to_oneself;
  const uint32 own_rank = emulated::here->rank;
  return shared_address(address) ^ (own_rank ^ rank) << emulated::kOffsetBits;
}
inline void store_remote(uint32 remote, float value) {
  std::memcpy(emulated::memory_at(remote), &value, 4);
}
inline void barrier_arrive_remote(uint32 remote) {
  auto* barrier = reinterpret_cast<uint64*>(emulated::memory_at(remote));
  emulated::arrive(*emulated::here->peer, barrier);
}
struct ClusterMeeting {
  std::mutex mutex;
  std::condition_variable changed;
  unsigned arrived = 0;
  uint64 round = 0;
};
inline ClusterMeeting clusters[16];
inline void cluster_sync() {
  ClusterMeeting& cluster = clusters[blockIdx.x / 2];
  std::unique_lock lock(cluster.mutex);
  const uint64 round = cluster.round;
  if (++cluster.arrived == 2 * blockDim.x) {
    cluster.arrived = 0;
    ++cluster.round;
    cluster.changed.notify_all();
  } else {
    emulated::wait_until(cluster.changed, lock, [&] { return cluster.round != round; });
  }
}

// ---- products of matrices -----------------------------------------------------------------------

// Rows of 128 bytes in groups of eight, swizzled.
template <int kPanel>
uint64 matrix_descriptor(uint32 address) {
  static_assert(kPanel == 128, "the only swizzle that is imagined");
  return 1ull << 62 | static_cast<uint64>(8 * kPanel >> 4) << 32 | 1 << 16 |
         (address & 0x3ffff) >> 4;
}

inline void wgmma_fence() {}
inline void wgmma_commit() {
  emulated::groups.push_back(std::move(emulated::open_group));
  emulated::open_group.clear();
}
// The threads of a warp are at these instructions together.
template <int kPending>
void wgmma_wait() {
  auto& groups = emulated::groups;
  while (groups.size() > kPending) {
    for (auto& product : groups.front()) product.run();
    groups.erase(groups.begin());
  }
  __syncwarp();
}
template <int kCount>
void pin(float (&)[kCount]) {}

template <int kKind, int kColumns>
struct Wgmma {
  static void shared(float (&sums)[kColumns / 2], uint64 a, uint64 b, int keeps) {
    float* target = sums;
    emulated::open_group.push_back({[=] {
      if (!keeps) std::fill_n(target, kColumns / 2, 0.0f);
      emulated::multiply<kKind, kColumns>(target, a, b);
    }});
  }
};
