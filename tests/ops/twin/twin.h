// The CPU twin of csrc/device.cuh: it defines the same names with CPU threads, so the kernels compile unchanged.
//
// A block's threads run at once, and blocks run one after another, so that the thread sanitizer sees races on shared
// memory between barriers. Shared memory has exactly the size asked for, so that the address sanitizer sees accesses
// past its end. copy_async overwrites its target with NaN at once and fills it only when it is waited for.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

namespace fasttrace {

struct Index {
  unsigned x, y;
};
inline thread_local Index threadIdx, blockIdx, gridDim;

struct bfloat16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { return as_float(uint32_t(x.bits) << 16); }
inline void store(float* where, float x) { *where = x; }
inline void store(bfloat16* where, float x) {
  const uint32_t bits = bits_of(x);
  where->bits = std::isnan(x) ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

namespace twin {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "twin: %s\n", what);
  std::abort();
}

struct Warp {
  std::barrier<> lanes{32};
  float given[2][32][6];  // two slots in turn, so that one barrier a call is enough
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Spoil {  // fills shared memory with NaN before each block
  unsigned char* memory;
  size_t bytes;
  void operator()() noexcept { std::memset(memory, 0xff, bytes); }
};

struct Block {
  explicit Block(unsigned threads, size_t shared)
      : warps(threads / 32), memory(new unsigned char[shared]), all(threads), begin(threads, {memory.get(), shared}) {}
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> memory;
  std::barrier<> all;
  std::barrier<Spoil> begin;
};

inline thread_local Block* block;
inline thread_local unsigned turn;
inline thread_local std::deque<std::vector<Copy>> groups;

// The values of every lane of the warp.
template <int N>
float (*exchange(const float (&mine)[N]))[6] {
  Warp& warp = block->warps[threadIdx.x / 32];
  auto* given = warp.given[turn++ % 2];
  for (int i = 0; i < N; ++i) given[threadIdx.x % 32][i] = mine[i];
  warp.lanes.arrive_and_wait();
  return given;
}

// Rounds towards zero, as the matrix units round their sums (Fasi et al. 2021, PeerJ Computer Science 7:e330).
inline float truncated(double x) {
  const float near = float(x);
  return std::fabs(double(near)) > std::fabs(x) ? std::nextafter(near, 0.0f) : near;
}

}  // namespace twin

inline void __syncthreads() { twin::block->all.arrive_and_wait(); }
inline unsigned char* shared_memory() { return twin::block->memory.get(); }

inline void copy_async(void* to, const void* from, int bytes) {
  if (uintptr_t(to) % 16 || uintptr_t(from) % 16) twin::fail("copy_async of an address that is no multiple of 16");
  if (bytes < 0 || bytes > 16) twin::fail("copy_async of fewer than 0 or more than 16 bytes");
  std::memset(to, 0xff, 16);
  if (twin::groups.empty()) twin::groups.emplace_back();
  twin::groups.back().push_back({to, from, bytes});
}
inline void end_group() {
  if (twin::groups.empty()) twin::groups.emplace_back();
  twin::groups.emplace_back();  // the last one is open
}
template <int later>
void wait_copies() {
  while (int(twin::groups.size()) - 1 > later) {
    for (const twin::Copy& copy : twin::groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    }
    twin::groups.pop_front();
  }
}

inline float nearest_tf32(float x) { return as_float((bits_of(x) + 0x1000u) & 0xffffe000u); }

inline void multiply_add(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  float mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  for (float& x : mine)
    if (!std::isnan(x)) x = as_float(bits_of(x) & 0xffffe000u);
  auto* given = twin::exchange(mine);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = d[i];
    for (int k = 0; k < 8; ++k)
      sum += double(given[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]) * double(given[column * 4 + k % 4][4 + k / 4]);
    d[i] = twin::truncated(sum);
  }
}

inline void load_transposed(uint32_t (&x)[4], const bfloat16* row) {
  if (uintptr_t(row) % 16) twin::fail("load_transposed of an address that is no multiple of 16");
  float mine[2];
  std::memcpy(mine, &row, 8);
  auto* given = twin::exchange(mine);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    x[i] = 0;
    for (int half = 0; half < 2; ++half) {
      const bfloat16* other;
      std::memcpy(&other, given[8 * i + 2 * t + half], 8);
      x[i] |= uint32_t(other[g].bits) << 16 * half;
    }
  }
}

inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float mine[6];
  std::memcpy(mine, a, 16);
  std::memcpy(mine + 4, b, 8);
  auto* given = twin::exchange(mine);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto half = [](float pair, int k) { return double(as_float(k % 2 ? bits_of(pair) & 0xffff0000u : bits_of(pair) << 16)); };
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k)
      sum += half(given[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k) * half(given[column * 4 + k % 8 / 2][4 + k / 8], k);
    d[i] = twin::truncated(sum);
  }
}

inline float warp_sum(float x) {
  const float mine[1] = {x};
  auto* given = twin::exchange(mine);
  float sums[32], next[32];
  for (int i = 0; i < 32; ++i) sums[i] = given[i][0];
  for (int apart = 16; apart > 0; apart /= 2) {
    for (int i = 0; i < 32; ++i) next[i] = sums[i] + sums[i ^ apart];
    std::memcpy(sums, next, sizeof sums);
  }
  return sums[threadIdx.x % 32];
}

namespace twin {

// Runs `kernel()` for every thread of every block of the plan (a Launch).
template <class Launch, class Kernel>
void run(Launch plan, Kernel kernel) {
  Block shared_by_all(plan.threads, plan.shared);
  std::vector<std::thread> threads;
  for (unsigned id = 0; id < plan.threads; ++id)
    threads.emplace_back([&, id] {
      block = &shared_by_all;
      threadIdx = {id, 0};
      gridDim = {plan.across, plan.down};
      for (unsigned b = 0; b < plan.across * plan.down; ++b) {
        block->begin.arrive_and_wait();
        blockIdx = {b % plan.across, b / plan.across};
        kernel();
        groups.clear();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace twin
}  // namespace fasttrace
