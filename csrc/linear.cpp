// linear_ on the CPU: y = x wᵀ + b in float32, with w read where it lies. A library packs w first, which costs more than
// the product itself where x has few rows.
//
// Where the rows of w are contiguous, SIMD lanes are rows of x: x is packed into panels of up to three vectors of rows, and
// each number of w is broadcast. Where the columns of w are contiguous (a gradient, GPT-2's weights), lanes are
// columns of wᵀ, and each number of x is broadcast. Either way an element of y is a sum over blocks of k, each summed in
// order, so its bits depend on its own row of x, on w and on b alone: neither on the other rows nor on the threads.
#include <algorithm>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"

namespace fasttrace {
namespace {

constexpr int64_t block_k = 256;  // a block of k of a panel of x stays in the first-level cache
// Rows of wᵀ at a time, where lanes are its columns: few pages, and a tile in the first-level cache.
constexpr int64_t block_rows = 64;
constexpr int64_t large_m = 128, group_k = 3;  // beyond large_m rows, y leaves the second-level cache
constexpr int64_t slice_n = 576;  // columns of wᵀ at a time: two blocks of them stay in the second-level cache
constexpr int64_t block_n = 96;   // rows of w that every panel is multiplied with, in the second-level cache
constexpr int64_t small = 16384;  // floats of a panel that may be read from the second-level cache
constexpr int64_t chunk_m = 240;  // rows of x at a time
constexpr int64_t line = 16;        // floats in a cache line
constexpr int64_t spare = 16;       // rows of w in the largest tile: the last one may be filled up
constexpr int64_t max_panel = 48;

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// k is cut into blocks of equal length, which depends on k alone.
FT_INLINE int64_t block_of(int64_t k, int64_t most) {
  const int64_t blocks = (k + most - 1) / most;
  return (k + blocks - 1) / blocks;
}

struct Product {
  const float* x;     // (m, k), rows `x_stride` apart
  const float* w;     // (n, k) or its transpose (k, n), rows `w_stride` apart
  const float* bias;  // (n,), or null
  float* y;           // (m, n), contiguous
  int64_t m, n, k, x_stride, w_stride;
};

// Rows of `to` = columns of `from`, four by four.
FT_INLINE void transpose4(const float* from, int64_t from_stride, float* to, int64_t to_stride, Four added) {
  const Four a = *(const Four*)from, b = *(const Four*)(from + from_stride), c = *(const Four*)(from + 2 * from_stride),
             d = *(const Four*)(from + 3 * from_stride);
  const Four p = __builtin_shufflevector(a, b, 0, 4, 1, 5), q = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four r = __builtin_shufflevector(a, b, 2, 6, 3, 7), s = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(Four*)to = __builtin_shufflevector(p, q, 0, 1, 4, 5) + added;
  *(Four*)(to + to_stride) = __builtin_shufflevector(p, q, 2, 3, 6, 7) + added;
  *(Four*)(to + 2 * to_stride) = __builtin_shufflevector(r, s, 0, 1, 4, 5) + added;
  *(Four*)(to + 3 * to_stride) = __builtin_shufflevector(r, s, 2, 3, 6, 7) + added;
}

// ---- Lanes are rows of x. ----

// sums (R, C vectors) = w (R, count) xᵀ for a panel of x (count, C vectors), added to `part` unless `first`. The R rows
// at `ahead` are read next.
template <int V, int R, int C>
FT_INLINE void tile_of_rows(const float* w, int64_t stride, const float* x, int64_t count, const float* ahead, bool first,
                            float* part) {
  typedef float Vector __attribute__((vector_size(V * 4), may_alias));
  Vector sum[R][C] = {};
  for (int64_t k0 = 0; k0 < count; k0 += line) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) __builtin_prefetch(ahead + r * stride + k0);
    const int64_t end = count - k0 < line ? count : k0 + line;
    for (int64_t k = k0; k < end; ++k, x += C * V) {
      Vector column[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) column[c] = *(const Vector*)(x + c * V);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[r][c] += w[r * stride + k] * column[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Vector* to = (Vector*)(part + (r * C + c) * V);
      *to = first ? sum[r][c] : *to + sum[r][c];
    }
}

// part (rows, C vectors) = w (rows, count) xᵀ for `rows` rows of w, added unless `first`. The rows at `next` are read
// after these.
template <int V, int R, int C>
FT_INLINE void panel_of_rows(const float* w, int64_t stride, int64_t rows, const float* x, int64_t count, bool first,
                             const float* next, float* part) {
  int64_t j = 0;
  for (; j + R <= rows; j += R) {
    const float* at = w + j * stride;
    tile_of_rows<V, R, C>(at, stride, x, count, j + 2 * R <= rows ? at + R * stride : next, first, part + j * C * V);
  }
  if (j < rows) {
    alignas(64) float last[R * block_k] = {};
    for (int64_t r = 0; r < rows - j; ++r) std::memcpy(last + r * block_k, w + (j + r) * stride, size_t(count) * 4);
    tile_of_rows<V, R, C>(last, block_k, x, count, last, first, part + j * C * V);
  }
}

// Copies rows of x into a panel (k, width); rows past `rows` are zero.
FT_INLINE void pack(const float* x, int64_t stride, int64_t rows, int64_t k, int64_t width, float* to) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    const float* from = x + i * stride;
    int64_t j = 0;
    for (; j + 4 <= k; j += 4) transpose4(from + j, stride, to + j * width + i, width, Four{});
    for (; j < k; ++j)
      for (int64_t r = 0; r < 4; ++r) to[j * width + i + r] = from[r * stride + j];
  }
  for (; i < width; ++i)
    for (int64_t j = 0; j < k; ++j) to[j * width + i] = i < rows ? x[i * stride + j] : 0.0f;
}

// y (rows, count) = partᵀ + bias for part (count, width).
FT_INLINE void unpack(const float* part, int64_t width, int64_t rows, int64_t count, const float* bias, float* y,
                      int64_t stride) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const Four added = bias ? *(const Four*)(bias + j) : Four{};
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) transpose4(part + j * width + i, width, y + i * stride + j, stride, added);
    for (; i < rows; ++i)
      for (int64_t r = 0; r < 4; ++r) y[i * stride + j + r] = part[(j + r) * width + i] + added[r];
  }
  for (; j < count; ++j)
    for (int64_t i = 0; i < rows; ++i) y[i * stride + j] = part[j * width + i] + (bias ? bias[j] : 0.0f);
}

// Where a chunk's panels begin: all have three vectors, the last as many as it needs.
FT_INLINE int64_t panel_width(int64_t rows, int64_t V) { return rows >= 3 * V ? 3 * V : (rows + V - 1) / V * V; }

// The columns begin … end of y for `rows` packed rows of x.
template <int V, int R>
FT_INLINE void multiply_rows(const Product& p, const float* packed, float* y, int64_t rows, int64_t begin, int64_t end,
                             float* part) {
  constexpr int single = R > 4 ? 16 : 3 * R;
  const int64_t block = block_of(p.k, block_k);
  // Where the one panel is small, w is read in the order of memory.
  const int64_t step = rows <= 3 * V && p.k * panel_width(rows, V) <= small ? 12 : block_n;
  for (int64_t n0 = begin; n0 < end; n0 += step) {
    const int64_t count = std::min(step, end - n0);
    for (int64_t k0 = 0; k0 < p.k; k0 += block) {
      const int64_t length = std::min(block, p.k - k0);
      const float* w = p.w + n0 * p.w_stride + k0;
      const float* next = w;
      if (k0 + block < p.k) next = w + block;
      else if (n0 + step + spare <= end) next = w + step * p.w_stride - k0;
      for (int64_t i = 0; i < rows; i += 3 * V) {
        const int64_t width = panel_width(rows - i, V);
        const float* x = packed + i * p.k + k0 * width;
        float* to = part + i * (block_n + spare);
        if (width == 3 * V) panel_of_rows<V, R, 3>(w, p.w_stride, count, x, length, k0 == 0, next, to);
        if (width == 2 * V) panel_of_rows<V, R * 3 / 2, 2>(w, p.w_stride, count, x, length, k0 == 0, next, to);
        // Rows of w that are a multiple of 2 KB apart share few sets of the first-level cache: few streams from memory.
        if (width == V && step == 12) panel_of_rows<V, 6, 1>(w, p.w_stride, count, x, length, k0 == 0, next, to);
        if (width == V && step != 12) panel_of_rows<V, single, 1>(w, p.w_stride, count, x, length, k0 == 0, next, to);
      }
    }
    for (int64_t i = 0; i < rows; i += 3 * V)
      unpack(part + i * (block_n + spare), panel_width(rows - i, V), std::min<int64_t>(3 * V, rows - i), count,
             p.bias ? p.bias + n0 : nullptr, y + i * p.n + n0, p.n);
  }
}

// ---- Lanes are columns of wᵀ. ----

struct Columns {
  const float* w;      // (count, C vectors)
  const float* ahead;  // what is fetched meanwhile: pieces of C vectors, of which the row of w holds `left` more
  int64_t left, pieces;
  float* copy;         // where w is copied without gaps, or null
  const float* bias;   // of the last block of k, or null
  int64_t stride, count;
  bool first;
};

template <int V, int R, int C, bool cold>
FT_INLINE void tile_of_columns(const Columns& b, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  typedef float Vector __attribute__((vector_size(V * 4), aligned(4), may_alias));
  Vector sum[R][C] = {};
  const float* w = b.w;
  const float* ahead = b.ahead;
  float* copy = b.copy;
  int64_t left = b.left;
  if (!b.first)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C * V; c += line) __builtin_prefetch(y + r * y_stride + c);
  for (int64_t k = 0; k < b.count; ++k, w += b.stride) {
    Vector row[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) row[c] = *(const Vector*)(w + c * V);
    if (cold) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) *(Vector*)(copy + c * V) = row[c];
      copy += C * V;
      for (int c = 0; c < C * V; c += line) __builtin_prefetch(ahead + c);
      ahead += C * V;
      if (--left == 0) {
        left = b.pieces;
        ahead += b.stride - b.pieces * C * V;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += x[r * x_stride + k] * row[c];
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Vector* to = (Vector*)(y + r * y_stride + c * V);
      Vector value = b.first ? sum[r][c] : *to + sum[r][c];
      if (b.bias) value += *(const Vector*)(b.bias + c * V);
      *to = value;
    }
}

template <int V, int R, bool cold>
FT_INLINE void tile_of(int64_t rows, const Columns& b, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  if constexpr (R > 1)
    if (rows < R) return tile_of<V, R - 1, cold>(rows, b, x, x_stride, y, y_stride);
  tile_of_columns<V, R, 3, cold>(b, x, x_stride, y, y_stride);
}

// The columns begin … end of y for all rows of x and the rows k0 … k0 + length of wᵀ, summed `block` rows at a time.
// `next` (length, as wide) is fetched meanwhile, in the order of memory: the tiles themselves cross a page with almost
// every row.
template <int V, int R>
FT_INLINE void part_of_columns(const Product& p, int64_t k0, int64_t length, int64_t block, int64_t begin, int64_t end,
                               const float* next, float* scratch) {
  constexpr int64_t W = 3 * V;
  const int64_t pieces = std::max<int64_t>(1, (end - begin) / W);
  for (int64_t m0 = 0; m0 < p.m; m0 += chunk_m) {
    const int64_t rows = std::min(chunk_m, p.m - m0), tiles = (rows + R - 1) / R;
    for (int64_t n0 = begin; n0 < end; n0 += W) {
      const float* w = p.w + k0 * p.w_stride + n0;
      const int64_t filled = std::min(W, end - n0);
      const bool whole = filled == W;
      alignas(64) float edge[W] = {}, tile[R * W];
      const float* bias = p.bias ? p.bias + n0 : nullptr;
      if (!whole) {
        for (int64_t k = 0; k < length; ++k)
          for (int64_t j = 0; j < W; ++j) scratch[k * W + j] = j < filled ? w[k * p.w_stride + j] : 0.0f;
        if (bias) bias = static_cast<const float*>(std::memcpy(edge, bias, size_t(filled) * 4));
      }
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t row = m0 + rows * i / tiles, count = m0 + rows * (i + 1) / tiles - row;
        const float* x = p.x + row * p.x_stride + k0;
        float* y = p.y + row * p.n + n0;
        for (int64_t k = 0; k < length; k += block) {
          Columns b{scratch + k * W, nullptr, 0, pieces, nullptr, nullptr, W, std::min(block, length - k), k0 + k == 0};
          if (k0 + k + b.count == p.k) b.bias = bias;
          if (!whole) {
            for (int64_t r = 0; r < count && !b.first; ++r) std::memcpy(tile + r * W, y + r * p.n, size_t(filled) * 4);
            tile_of<V, R, false>(count, b, x + k, p.x_stride, tile, W);
            for (int64_t r = 0; r < count; ++r) std::memcpy(y + r * p.n, tile + r * W, size_t(filled) * 4);
          } else if (i == 0) {
            // The first tile reads w itself, and leaves a copy without gaps for the others.
            const int64_t fetched = (n0 - begin) / W * length + k;
            b.copy = scratch + k * W;
            b.w = w + k * p.w_stride;
            b.stride = p.w_stride;
            b.ahead = next + fetched / pieces * p.w_stride + fetched % pieces * W;
            b.left = pieces - fetched % pieces;
            tile_of<V, R, true>(count, b, x + k, p.x_stride, y, p.n);
          } else {
            tile_of<V, R, false>(count, b, x + k, p.x_stride, y, p.n);
          }
        }
      }
    }
  }
}

// The columns begin … end of y, for all rows of x.
template <int V, int R>
FT_INLINE void multiply_columns(const Product& p, int64_t begin, int64_t end, float* scratch) {
  constexpr int64_t W = 3 * V;
  // Where y is large, several blocks are added while a tile of it is in the first-level cache.
  const int64_t group = p.m > large_m ? group_k : 1;
  const int64_t block = block_of(p.k, block_rows), part = group * block, slice = slice_n / group / W * W;
  for (int64_t k0 = 0; k0 < p.k; k0 += part) {
    const int64_t length = std::min(part, p.k - k0);
    for (int64_t n0 = begin; n0 < end; n0 += slice) {
      const float* at = p.w + k0 * p.w_stride;
      const float* next = at + n0;
      if (n0 + 2 * slice <= end) next = at + n0 + slice;
      else if (n0 + slice >= end && k0 + 2 * part <= p.k) next = at + part * p.w_stride + begin;
      part_of_columns<V, R>(p, k0, length, block, n0, std::min(end, n0 + slice), next, scratch);
    }
  }
}

// ---- One function per instruction set. ----

struct Kernels {
  int64_t vector, rows;
  void (*by_rows)(const Product&, const float*, float*, int64_t, int64_t, int64_t, float*);
  void (*by_columns)(const Product&, int64_t, int64_t, float*);
  void (*pack)(const float*, int64_t, int64_t, int64_t, int64_t, float*);
};

#define FT_LINEAR(name, target, V, R)                                                                             \
  target void rows_##name(const Product& p, const float* packed, float* y, int64_t rows, int64_t begin, int64_t end, \
                          float* part) {                                                                          \
    multiply_rows<V, R>(p, packed, y, rows, begin, end, part);                                                    \
  }                                                                                                               \
  target void columns_##name(const Product& p, int64_t begin, int64_t end, float* scratch) {                      \
    multiply_columns<V, R>(p, begin, end, scratch);                                                               \
  }                                                                                                               \
  target void pack_##name(const float* x, int64_t stride, int64_t rows, int64_t k, int64_t width, float* to) {    \
    pack(x, stride, rows, k, width, to);                                                                          \
  }                                                                                                               \
  constexpr Kernels kernels_##name{V, R, rows_##name, columns_##name, pack_##name};

FT_LINEAR(baseline, , 4, 4)
#if defined(__x86_64__)
FT_LINEAR(avx2, FT_AVX2, 8, 4)
FT_LINEAR(avx512, FT_AVX512, 16, 8)
#endif

void multiply(const Product& p, bool by_rows) {
  const Kernels* kernels = &kernels_baseline;
#if defined(__x86_64__)
  if (isa() == Isa::avx2) kernels = &kernels_avx2;
  if (isa() == Isa::avx512) kernels = &kernels_avx512;
#endif
  const int64_t panel = 3 * kernels->vector;
  // A thread gets at least 2²⁰ products, and whole tiles.
  const int64_t tile = by_rows ? block_n / 2 : panel, tiles = (p.n + tile - 1) / tile;
  const int64_t grain = 1 + (int64_t(1) << 20) / (p.m * p.k * tile);
  if (!by_rows) {
    torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      alignas(64) float scratch[group_k * block_rows * max_panel];
      kernels->by_columns(p, begin * tile, std::min(p.n, end * tile), scratch);
    });
    return;
  }
  const int64_t chunk = chunk_m / panel * panel, most = std::min(chunk, (p.m + panel - 1) / panel * panel);
  const auto packed = aligned<float>(most * p.k);
  for (int64_t m0 = 0; m0 < p.m; m0 += chunk) {
    const int64_t rows = std::min(chunk, p.m - m0), panels = (rows + panel - 1) / panel;
    torch::stable::parallel_for(0, panels, 1 + (int64_t(1) << 16) / (panel * p.k), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * panel; i < std::min(rows, end * panel); i += panel)
        kernels->pack(p.x + (m0 + i) * p.x_stride, p.x_stride, std::min(panel, rows - i), p.k,
                      panel_width(rows - i, kernels->vector), packed.get() + i * p.k);
    });
    torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      const auto part = aligned<float>(panels * panel * (block_n + spare));
      kernels->by_rows(p, packed.get(), p.y + m0 * p.n, rows, begin * tile, std::min(p.n, end * tile), part.get());
    });
  }
}

}  // namespace

void linear_cpu(const Tensor x, const Tensor w, std::optional<Tensor> bias, Tensor out) {
  check_linear(x, w, bias, out);
  if (out.numel() == 0) return;
  const bool by_rows = w.stride(1) == 1 || w.size(1) == 1;
  const auto read = [](const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); };
  multiply({read(x), read(w), bias ? read(*bias) : nullptr, static_cast<float*>(out.mutable_data_ptr()), x.size(0),
            w.size(0), x.size(1), x.stride(0), by_rows ? w.stride(0) : w.stride(1)},
           by_rows);
}

}  // namespace fasttrace
