// Products of bfloat16 matrices with float32 sums, by the processor's own instructions where it has them.
#pragma once

#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fasttrace {

// widened: float32 multiplications of widened elements, on every processor.
enum class Products { widened, avx512_bf16, amx };

#if defined(__x86_64__)
// Whether the processor, the kernel and, by this call, the process may use the tiles. Linux asks for permission once.
inline bool amx_permitted() {
#if defined(__linux__)
  constexpr unsigned tile_state = 3u << 17, tile_data = 18, request_permission = 0x1023;
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & tile_state) == tile_state && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

// The fastest products this CPU has. The tests reach the others by compiling with FASTTRACE_PRODUCTS.
inline Products products() {
#if defined(__x86_64__)
  static const Products found = [] {
    unsigned a, b, c, d;
    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Products::widened;
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    return (d & amx_bf16) && (d & amx_tile) && amx_permitted() ? Products::amx : Products::avx512_bf16;
  }();
#if defined(FASTTRACE_PRODUCTS)
  return Products(FASTTRACE_PRODUCTS) < found ? Products(FASTTRACE_PRODUCTS) : found;
#else
  return found;
#endif
#else
  return Products::widened;
#endif
}

// An AMX tile is 16 rows of 64 bytes: 16 float32 sums, or 16 pairs of bfloat16 a row.
constexpr int64_t kTile = 16;
constexpr int64_t kDepth = 2 * kTile;  // elements of a row that one product of tiles sums

// sums (16 R, 16 G) float32, rows `step` apart, = or += a b, for R and G of 1 or 2.
// a: 16 R rows of 2 · pairs bfloat16, `stride` apart.
// b: packed by pack_pairs, 16 columns after another: `pairs` rows of 16 words; word j of row i holds elements 2i (low
//    half) and 2i + 1 of column j, as the instructions read them.
// pairs: a multiple of 16.
using Multiply = void (*)(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, int R, int G,
                          float* sums, int64_t step, bool add);

// N vectors of V float32 sums by M rows are in registers at a time.
template <int V, int N, int M>
FT_INLINE void multiply_widened(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, int R, int G,
                                float* sums, int64_t step, bool add) {
  typedef float Vector __attribute__((vector_size(V * 4), aligned(4), may_alias));
  typedef uint32_t Words __attribute__((vector_size(V * 4), aligned(4), may_alias));
  for (int64_t j = 0; j < G * kTile; j += N * V) {
    const uint32_t* columns = b + j / kTile * kTile * pairs + j % kTile;
    for (int64_t i = 0; i < R * kTile; i += M) {
      Vector sum[M][N] = {};
      for (int64_t k = 0; k < pairs; ++k) {
        Vector even[N], odd[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const Words both = *(const Words*)(columns + k * kTile + n * V);
          even[n] = (Vector)(both << 16);
          odd[n] = (Vector)(both & 0xffff0000u);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const uint16_t* pair = a + (i + m) * stride + 2 * k;
          const float first = widen(pair[0]), second = widen(pair[1]);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            sum[m][n] += first * even[n];
            sum[m][n] += second * odd[n];
          }
        }
      }
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
          Vector& to = *(Vector*)(sums + (i + m) * step + j + n * V);
          to = add ? to + sum[m][n] : sum[m][n];
        }
    }
  }
}

inline void multiply_baseline(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, int R, int G,
                              float* sums, int64_t step, bool add) {
  multiply_widened<4, 2, 4>(a, stride, b, pairs, R, G, sums, step, add);
}

#if defined(__x86_64__)
FT_AVX2 inline void multiply_avx2(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, int R, int G,
                                  float* sums, int64_t step, bool add) {
  multiply_widened<8, 2, 4>(a, stride, b, pairs, R, G, sums, step, add);
}

FT_AVX512 inline void multiply_avx512(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, int R,
                                      int G, float* sums, int64_t step, bool add) {
  multiply_widened<16, 1, 8>(a, stride, b, pairs, R, G, sums, step, add);
}

#define FT_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))

template <int G>
FT_AVX512_BF16 inline void multiply_avx512_bf16(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs,
                                                int R, float* sums, int64_t step, bool add) {
  constexpr int M = 8;  // with G = 2, 16 sums are in flight: more than the latency of the instruction
  for (int64_t i = 0; i < R * kTile; i += M) {
    __m512 sum[M][G];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g)
        sum[m][g] = add ? _mm512_loadu_ps(sums + (i + m) * step + g * kTile) : _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; ++k) {
      __m512i column[G];
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) column[g] = _mm512_loadu_si512(b + (g * pairs + k) * kTile);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        int32_t pair;
        std::memcpy(&pair, a + (i + m) * stride + 2 * k, sizeof pair);
        const __m512i row = _mm512_set1_epi32(pair);
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) sum[m][g] = _mm512_dpbf16_ps(sum[m][g], (__m512bh)row, (__m512bh)column[g]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) _mm512_storeu_ps(sums + (i + m) * step + g * kTile, sum[m][g]);
  }
}

FT_AVX512_BF16 inline void multiply_avx512_bf16(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs,
                                                int R, int G, float* sums, int64_t step, bool add) {
  if (G == 1)
    multiply_avx512_bf16<1>(a, stride, b, pairs, R, sums, step, add);
  else
    multiply_avx512_bf16<2>(a, stride, b, pairs, R, sums, step, add);
}

// Written as assembly because GCC's intrinsics do not tell the compiler that they read and write memory.
// Tiles 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 columns of b.
#define FT_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::: "memory")
#define FT_TILE_LOAD(tile, from, bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(bytes)) : "memory")
#define FT_TILE_STORE(tile, to, bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(bytes)) : "memory")
#define FT_TILE_PRODUCT(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: "memory")

template <int R, int G>
inline void multiply_amx(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, float* sums,
                         int64_t step, bool add) {
  const int64_t a_bytes = 2 * stride, b_bytes = 4 * kTile, sum_bytes = 4 * step;
  float* below = sums + kTile * step;
  if (add) {
    FT_TILE_LOAD(0, sums, sum_bytes);
    if (G == 2) FT_TILE_LOAD(1, sums + kTile, sum_bytes);
    if (R == 2) FT_TILE_LOAD(2, below, sum_bytes);
    if (R == 2 && G == 2) FT_TILE_LOAD(3, below + kTile, sum_bytes);
  } else {
    FT_TILE_ZERO(0);
    if (G == 2) FT_TILE_ZERO(1);
    if (R == 2) FT_TILE_ZERO(2);
    if (R == 2 && G == 2) FT_TILE_ZERO(3);
  }
  for (int64_t k = 0; k < pairs; k += kTile) {
    FT_TILE_LOAD(6, b + k * kTile, b_bytes);
    FT_TILE_LOAD(4, a + 2 * k, a_bytes);
    FT_TILE_PRODUCT(0, 4, 6);
    if (G == 2) {
      FT_TILE_LOAD(7, b + (pairs + k) * kTile, b_bytes);
      FT_TILE_PRODUCT(1, 4, 7);
    }
    if (R == 2) {
      FT_TILE_LOAD(5, a + kTile * stride + 2 * k, a_bytes);
      FT_TILE_PRODUCT(2, 5, 6);
      if (G == 2) FT_TILE_PRODUCT(3, 5, 7);
    }
  }
  FT_TILE_STORE(0, sums, sum_bytes);
  if (G == 2) FT_TILE_STORE(1, sums + kTile, sum_bytes);
  if (R == 2) FT_TILE_STORE(2, below, sum_bytes);
  if (R == 2 && G == 2) FT_TILE_STORE(3, below + kTile, sum_bytes);
}

inline void multiply_amx(const uint16_t* a, int64_t stride, const uint32_t* b, int64_t pairs, int R, int G,
                         float* sums, int64_t step, bool add) {
  auto* kernel = multiply_amx<2, 2>;
  if (R == 1) kernel = G == 1 ? multiply_amx<1, 1> : multiply_amx<1, 2>;
  if (R == 2 && G == 1) kernel = multiply_amx<2, 1>;
  kernel(a, stride, b, pairs, sums, step, add);
}
#endif

inline Multiply multiply_of([[maybe_unused]] Products which) {
#if defined(__x86_64__)
  if (which == Products::amx) return multiply_amx;
  if (which == Products::avx512_bf16) return multiply_avx512_bf16;
  if (isa() == Isa::avx512) return multiply_avx512;
  if (isa() == Isa::avx2) return multiply_avx2;
#endif
  return multiply_baseline;
}

// A thread multiplies between the beginning and the end of one of these.
class Multiplying {
 public:
  explicit Multiplying(Products which) : tiles_(which == Products::amx) {
#if defined(__x86_64__)
    struct {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shapes;
    if (tiles_) asm volatile("ldtilecfg %0" ::"m"(shapes));
#endif
  }
  ~Multiplying() {
#if defined(__x86_64__)
    if (tiles_) asm volatile("tilerelease" ::: "memory");
#endif
  }
  Multiplying(const Multiplying&) = delete;
  Multiplying& operator=(const Multiplying&) = delete;

 private:
  [[maybe_unused]] bool tiles_;
};

// Packs b as Multiply reads it: element (k, j) of the matrix is from[k · row + j · column]. Rows past `depth`, up to
// 2 · pairs, and columns past `width`, up to a multiple of 16, are zero.
FT_INLINE void pack_pairs(const uint16_t* from, int64_t row, int64_t column, int64_t depth, int64_t width,
                          int64_t pairs, uint32_t* to) {
  for (int64_t j0 = 0; j0 < width; j0 += kTile) {
    const int64_t filled = width - j0 < kTile ? width - j0 : kTile;
    for (int64_t i = 0; i < pairs; ++i, to += kTile) {
      const uint16_t *first = from + 2 * i * row + j0 * column, *second = first + row;
      if (filled == kTile && 2 * i + 1 < depth && column == 1) {
        for (int64_t j = 0; j < kTile; ++j) to[j] = uint32_t(first[j]) | uint32_t(second[j]) << 16;
        continue;
      }
      for (int64_t j = 0; j < kTile; ++j) {
        const uint32_t low = j < filled && 2 * i < depth ? first[j * column] : 0u;
        const uint32_t high = j < filled && 2 * i + 1 < depth ? second[j * column] : 0u;
        to[j] = low | high << 16;
      }
    }
  }
}

}  // namespace fasttrace
