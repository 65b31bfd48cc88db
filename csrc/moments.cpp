// second_moment_ on the CPU: C += Kᵀ K as a packed symmetric product. One half is computed and both halves are stored.
//
// The columns of K are cut into panels of W = 3 vectors, packed row by row, so that one copy serves as either factor.
// A tile (p, q), p <= q, is the W x W product of two panels. Its sums stay in float32 registers for `flush` rows and
// are then added to a float64 tile, so the error does not grow with n. C is touched once per tile and block of rows.
#include <atomic>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"

namespace fasttrace {
namespace {

constexpr int64_t flush = 32;         // rows summed in float32 before they are added to the float64 tile
constexpr int64_t block_rows = 1024;  // rows packed at once: one panel fits the second-level cache
constexpr int max_panel = 48;

// tile (3V, 3V) float64 += aᵀ b for packed panels a, b (rows, 3V). A vector has V floats; MR rows are in registers.
template <int V, int MR>
FT_INLINE void multiply(const float* a, const float* b, int64_t rows, double* tile) {
  typedef float Vector __attribute__((vector_size(V * 4)));
  constexpr int W = 3 * V;
  static_assert(W % MR == 0, "one panel must hold whole register blocks");
  for (int64_t k0 = 0; k0 < rows; k0 += flush) {
    const int64_t count = rows - k0 < flush ? rows - k0 : flush;
    for (int i = 0; i < W; i += MR) {
      const float* x = a + k0 * W + i;
      const float* y = b + k0 * W;
      Vector sum[MR][3] = {};
      for (int64_t k = 0; k < count; ++k, x += W, y += W) {
        const Vector y0 = *(const Vector*)y, y1 = *(const Vector*)(y + V), y2 = *(const Vector*)(y + 2 * V);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          sum[r][0] += x[r] * y0;
          sum[r][1] += x[r] * y1;
          sum[r][2] += x[r] * y2;
        }
      }
      alignas(64) float block[MR * W];
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        *(Vector*)(block + r * W) = sum[r][0];
        *(Vector*)(block + r * W + V) = sum[r][1];
        *(Vector*)(block + r * W + 2 * V) = sum[r][2];
      }
      double* into = tile + i * W;
      for (int j = 0; j < MR * W; ++j) into[j] += double(block[j]);
    }
  }
}

using Multiply = void (*)(const float*, const float*, int64_t, double*);

void multiply_baseline(const float* a, const float* b, int64_t n, double* t) { multiply<4, 4>(a, b, n, t); }
#if defined(__x86_64__)
FT_AVX2 void multiply_avx2(const float* a, const float* b, int64_t n, double* t) { multiply<8, 4>(a, b, n, t); }
FT_AVX512 void multiply_avx512(const float* a, const float* b, int64_t n, double* t) {
  multiply<16, 8>(a, b, n, t);
}
#endif

// Copies `rows` rows of K, widened to float32, into panels of `width` columns; columns past m are zero.
template <class T>
void pack(const T* K, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t m, int64_t width,
          float* packed) {
  const int64_t panels = (m + width - 1) / width;
  torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t p = 0; p < panels; ++p) {
        const T* from = K + r * row_stride + p * width * column_stride;
        float* to = packed + (p * rows + r) * width;
        const int64_t filled = m - p * width < width ? m - p * width : width;
        if (column_stride == 1)
          for (int64_t j = 0; j < filled; ++j) to[j] = widen(from[j]);
        else
          for (int64_t j = 0; j < filled; ++j) to[j] = widen(from[j * column_stride]);
        for (int64_t j = filled; j < width; ++j) to[j] = 0.0f;
      }
    }
  });
}

// Adds a tile at (row, column) of C and, off the diagonal, its transpose at (column, row).
template <class T>
void add_tile(const double* tile, int64_t width, T* C, int64_t m, int64_t row, int64_t column) {
  const int64_t height = m - row < width ? m - row : width, breadth = m - column < width ? m - column : width;
  for (int64_t i = 0; i < height; ++i)
    for (int64_t j = 0; j < breadth; ++j) {
      T& c = C[(row + i) * m + column + j];
      c = T(double(c) + tile[i * width + j]);
    }
  if (row == column) return;
  for (int64_t j = 0; j < breadth; ++j)
    for (int64_t i = 0; i < height; ++i) {
      T& c = C[(column + j) * m + row + i];
      c = T(double(c) + tile[i * width + j]);
    }
}

template <class TC, class TK>
void accumulate(TC* C, const TK* K, int64_t n, int64_t m, int64_t row_stride, int64_t column_stride) {
  int64_t width = 12;
  Multiply kernel = multiply_baseline;
#if defined(__x86_64__)
  if (isa() == Isa::avx2) width = 24, kernel = multiply_avx2;
  if (isa() == Isa::avx512) width = 48, kernel = multiply_avx512;
#endif
  const int64_t panels = (m + width - 1) / width, tiles = panels * (panels + 1) / 2, area = width * width;
  const auto packed = aligned<float>(panels * width * (n < block_rows ? n : block_rows));

  // A float32 C is rounded once per call, so with several blocks of rows the tiles are kept in float64 between them.
  const bool waits = sizeof(TC) == 4 && n > block_rows;
  const auto waiting = aligned<double>(waits ? tiles * area : 0);

  std::vector<std::pair<int32_t, int32_t>> pairs;
  pairs.reserve(size_t(tiles));
  for (int32_t p = 0; p < panels; ++p)
    for (int32_t q = p; q < panels; ++q) pairs.emplace_back(p, q);

  for (int64_t start = 0; start < n; start += block_rows) {
    const int64_t rows = n - start < block_rows ? n - start : block_rows;
    pack(K + start * row_stride, row_stride, column_stride, rows, m, width, packed.get());
    // Threads take tiles from one counter, so a slow core delays only its own tile. No sum depends on the order.
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
      alignas(64) double local[max_panel * max_panel];
      for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tiles;) {
        const auto [p, q] = pairs[size_t(t)];
        double* tile = waits ? waiting.get() + t * area : local;
        if (!waits || start == 0) std::memset(tile, 0, size_t(area) * sizeof(double));
        kernel(packed.get() + p * rows * width, packed.get() + q * rows * width, rows, tile);
        if (!waits || start + rows == n) add_tile(tile, width, C, m, p * width, q * width);
      }
    });
  }
}

template <class TC>
void accumulate_into(Tensor& C, const Tensor& K) {
  TC* c = static_cast<TC*>(C.mutable_data_ptr());
  const int64_t n = K.size(0), m = K.size(1), row = K.stride(0), column = m == 1 ? 1 : K.stride(1);
  if (is_bfloat16(K))
    accumulate(c, static_cast<const uint16_t*>(K.const_data_ptr()), n, m, row, column);
  else
    accumulate(c, static_cast<const float*>(K.const_data_ptr()), n, m, row, column);
}

}  // namespace

void second_moment_cpu(Tensor C, const Tensor K) {
  check_second_moment(C, K);
  check(C.is_cpu() && K.is_cpu(), "second_moment_: expected C and K to be on the CPU");
  if (K.size(0) == 0 || K.size(1) == 0) return;
  if (is_float64(C))
    accumulate_into<double>(C, K);
  else
    accumulate_into<float>(C, K);
}

}  // namespace fasttrace
