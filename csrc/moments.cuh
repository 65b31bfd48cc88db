// second_moment_ on CUDA: C += Kᵀ K on the matrix units. One half is computed and both halves are stored.
//
// A block computes a 128 x 128 tile, each warp 64 x 32 of it. Products of bfloat16 are exact. A float32 product takes
// three in TF32: with x = hi - under, hi the nearest TF32, x x' is hi hi' - under hi' - hi under' to 2^-24 of itself. The
// matrix units round sums towards zero, so they sum only 32 rows at a time. Kahan summation adds these partial sums,
// and the two small products go into its correction. The error does not grow with n, and C is touched once.
//
// Floor: n m (m + 1) operations of bfloat16, or 3 n m (m + 1) of TF32 in float32; n m and 2 m² elements of K and C. At
// 989 and 494 TFLOP/s, 4.8 TB/s (H200), n = 8192, m = 16384: bfloat16 2.2 ms, float32 13 ms, C in float32 0.5 ms of
// traffic. In bfloat16 the Kahan additions, eight a thread for each of its products, take longer: some 6 ms.
#pragma once

#include "device.cuh"

namespace fasttrace::second_moment {

constexpr int tile = 128, padded = tile + 8;  // with 8 more, the 32 lanes of a fragment read 32 different banks
constexpr int rows = 32;
template <class TK>
constexpr int stages = 8 / sizeof(TK);  // stages of K in shared memory: one is multiplied while the others arrive
constexpr int threads = 256;
constexpr int group = 8;  // neighbouring blocks work on group x group tiles, to share the panels of K in L2

template <class TK>
struct Stage {
  TK left[rows][padded], right[rows][padded];
};

template <class TK>
Launch plan(int64_t m) {
  const int64_t groups = (m + tile * group - 1) / (tile * group);
  return {unsigned(groups * (groups + 1) / 2 * group * group), 1, threads, stages<TK> * sizeof(Stage<TK>)};
}

// Whether rows of K can be read 16 bytes at a time.
template <class TK>
bool reads_packs(const TK* K, int64_t row_stride, int64_t column_stride) {
  return column_stride == 1 && row_stride * int64_t(sizeof(TK)) % 16 == 0 && uintptr_t(K) % 16 == 0;
}

// One thread's share in loading the panels of K (n, m) that begin at column `from`, one after another. A panel is 0 beyond
// the edges of K. The thread copies a pack of the same columns in every `apart` rows.
template <class TK>
struct Packs {
  static constexpr int width = 16 / sizeof(TK), across = tile / width, apart = threads / across;
  const TK *K, *next;
  int bytes;
  int64_t pitch;

  __device__ Packs(const TK* K, int64_t m, int64_t row_stride, int64_t from) : K(K) {
    const int64_t column = from + threadIdx.x % across * width, valid = column >= m ? 0 : m - column;
    bytes = int((valid < width ? valid : width) * int64_t(sizeof(TK)));
    pitch = bytes ? apart * row_stride : 0;
    next = bytes ? K + threadIdx.x / across * row_stride + column : K;
  }

  // left: how many rows of K follow, from the panel's first on.
  __device__ void fetch(TK (&panel)[rows][padded], int64_t left) {
#pragma unroll
    for (int first = 0; first < rows; first += apart, next += pitch) {
      const int row = first + threadIdx.x / across;
      // A copy of 0 bytes still needs a valid address.
      const bool inside = row < left;
      copy_async(&panel[row][threadIdx.x % across * width], inside ? next : K, inside ? bytes : 0);
    }
  }
};

// The same for rows of K that cannot be read 16 bytes at a time.
template <class TK>
__device__ inline void fetch_each(TK (&panel)[rows][padded], const TK* K, int64_t n, int64_t m, int64_t row_stride,
                                  int64_t column_stride, int64_t start, int64_t from) {
#pragma unroll 1
  for (int at = threadIdx.x; at < rows * tile; at += threads) {
    const int64_t row = start + at / tile, column = from + at % tile;
    const bool inside = row < n && column < m;
    store(&panel[at / tile][at % tile], inside ? widen(K[row * row_stride + column * column_stride]) : 0.0f);
  }
}

// x = hi - under with hi the nearest TF32. The matrix units drop the part of `under` below 2^-23 of x.
template <int N>
__device__ inline void split(const float (&x)[N], float (&hi)[N], float (&under)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    hi[i] = nearest_tf32(x[i]);
    under[i] = hi[i] - x[i];
  }
}

template <class TC, class TK>
__global__ void __launch_bounds__(threads, 1)
    kernel(TC* C, const TK* K, int64_t n, int64_t m, int64_t row_stride, int64_t column_stride, bool packs) {
  // Group b of the upper triangle, counted down its columns, is (b - J (J + 1) / 2, J).
  const int64_t b = blockIdx.x / (group * group);
  int64_t J = int64_t((sqrt(8.0 * double(b) + 1.0) - 1.0) / 2.0);
  while (J * (J + 1) / 2 > b) --J;
  while ((J + 1) * (J + 2) / 2 <= b) ++J;
  const int within = blockIdx.x % (group * group);
  const int64_t row = ((b - J * (J + 1) / 2) * group + within / group) * tile, column = (J * group + within % group) * tile;
  if (row > column || column >= m) return;

  auto* stage = reinterpret_cast<Stage<TK>*>(shared_memory());
  const int64_t count = (n + rows - 1) / rows;
  Packs<TK> left(K, m, row_stride, row), right(K, m, row_stride, column);
  const auto request = [&](int64_t s) {
    Stage<TK>& next = stage[s % stages<TK>];
    if (s < count && packs) {
      left.fetch(next.left, n - s * rows);
      right.fetch(next.right, n - s * rows);
    } else if (s < count) {
      fetch_each(next.left, K, n, m, row_stride, column_stride, s * rows, row);
      fetch_each(next.right, K, n, m, row_stride, column_stride, s * rows, column);
    }
    end_group();  // even an empty group, so that the number of groups in flight is always the same
  };
  for (int s = 0; s < stages<TK> - 1; ++s) request(s);

  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  const int top = warp / 4 * 64, side = warp % 4 * 32;
  // KᵀK is total - lost. lost holds Kahan's correction and the two small products, negated because x = hi - under.
  float total[4][4][4] = {}, lost[4][4][4] = {};
  // Two turns of the loop hand over their sums without moving them. In float32 there are no registers left for it.
  constexpr int turns = sizeof(TK) == 2 ? 2 : 1;
#pragma unroll turns
  for (int64_t s = 0; s < count; ++s) {
    wait_copies<stages<TK> - 2>();
    __syncthreads();
    request(s + stages<TK> - 1);  // into the stage that every thread had finished with before the barrier
    const Stage<TK>& now = stage[s % stages<TK>];
    float part[4][4][4] = {};
    if constexpr (sizeof(TK) == 2) {
#pragma unroll
      for (int k = 0; k < rows; k += 16) {
        uint32_t b[4][2];
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint32_t x[4];
          load_transposed(x, &now.right[k + lane % 16][side + j * 8 + lane / 16 * 8]);
          b[j][0] = x[0], b[j][1] = x[1], b[j + 1][0] = x[2], b[j + 1][1] = x[3];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t a[4];
          load_transposed(a, &now.left[k + lane / 16 * 8 + lane % 8][top + i * 16 + lane / 8 % 2 * 8]);
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(part[i][j], a, b[j]);
        }
      }
    } else {
#pragma unroll 1  // unrolled, the loop would need more registers than there are
      for (int k = 0; k < rows; k += 8) {
        float hi[4][2], under[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int c = side + j * 8 + g;
          const float x[2] = {now.right[k + t][c], now.right[k + t + 4][c]};
          split(x, hi[j], under[j]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = top + i * 16 + g;
          const float x[4] = {now.left[k + t][r], now.left[k + t][r + 8], now.left[k + t + 4][r], now.left[k + t + 4][r + 8]};
          float high[4], below[4];
          split(x, high, below);
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(part[i][j], high, hi[j]);
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(lost[i][j], below, hi[j]);
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_add(lost[i][j], high, under[j]);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < 64; ++e) {
      const int i = e / 16, j = e / 4 % 4, x = e % 4;
      float &sum = total[i][j][x], &c = lost[i][j][x];
      const float y = part[i][j][x] - c, next = sum + y;
      c = (next - sum) - y;
      sum = next;
    }
  }

  // The upper half is stored in both halves, because the two halves of a product may differ in the last bit.
#pragma unroll
  for (int e = 0; e < 64; ++e) {
    const int i = e / 16, j = e / 4 % 4, x = e % 4;
    const int64_t r = row + top + i * 16 + g + x / 2 * 8, c = column + side + j * 8 + 2 * t + x % 2;
    if (r > c || c >= m) continue;
    const double sum = double(total[i][j][x]) - double(lost[i][j][x]);
    C[r * m + c] = TC(double(C[r * m + c]) + sum);
    if (r != c) C[c * m + r] = TC(double(C[c * m + r]) + sum);
  }
}

}  // namespace fasttrace::second_moment
