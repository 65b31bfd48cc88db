// rank_one_add_ on CUDA: one block per row of y. Its warps share the dot products, then its threads share the columns.
//
// Floor: 2 N d elements of y, N m of x, and (E w)(m + d) floats of keys and values, which are read from memory once
// and from L2 after that. At 4.8 TB/s (H200), N = 2048, d = 4096, m = 16384, one edit, bfloat16: 21 µs.
#pragma once

#include "device.cuh"

namespace fasttrace::rank_one_add {

constexpr int threads = 256, warps = threads / 32;
constexpr int64_t max_width = 8192;  // the dot products of a row are kept in 48 KiB of shared memory

// How many warps share one dot product: all of them where an edit is a single update, as in ROME.
inline int sharing(int64_t width) { return width == 1 ? 8 : width == 2 ? 4 : width <= 4 ? 2 : 1; }

inline Launch plan(int64_t rows, int64_t width) {
  return {unsigned(rows), 1, threads, size_t(width * sharing(width)) * sizeof(float)};
}

// A row whose edit is out of range becomes NaN: checking from the host would stall every layer.
template <class T>
__global__ void __launch_bounds__(threads)
    kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride, const int64_t* edit, const float* key,
           const float* value, int64_t edits, int64_t width, int sharing, int64_t m, int64_t d) {
  auto* along = reinterpret_cast<float*>(shared_memory());  // (width, sharing)
  const int64_t r = blockIdx.x, e = edit[r];
  if (e == -1) return;
  y += r * y_stride;
  x += r * x_stride;
  if (e < -1 || e >= edits) {
    for (int64_t c = threadIdx.x; c < d; c += threads) store(y + c, nanf(""));
    return;
  }
  key += e * width * m;
  value += e * width * d;
  for (int64_t part = threadIdx.x / 32; part < width * sharing; part += warps) {
    const float* k = key + part / sharing * m;
    float sum = 0;
    for (int64_t i = part % sharing * 32 + threadIdx.x % 32; i < m; i += 32 * sharing) sum = fmaf(widen(x[i]), k[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) along[part] = sum;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < d; c += threads) {
    float sum = 0;
    for (int64_t j = 0; j < width; ++j) {
      float all = 0;
      for (int part = 0; part < sharing; ++part) all += along[j * sharing + part];
      sum = fmaf(all, value[j * d + c], sum);
    }
    store(y + c, widen(y[c]) + sum);
  }
}

}  // namespace fasttrace::rank_one_add
