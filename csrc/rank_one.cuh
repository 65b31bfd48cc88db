// rank_one_ on CUDA: W += alpha u vᵀ in one pass. A thread updates 16 bytes across and `rows` rows down.
//
// Floor: 2 a b elements of W, read and written once (u and v come from cache). At 4.8 TB/s (H200), 4096 x 16384:
// float32 112 µs, bfloat16 56 µs.
#pragma once

#include "device.cuh"

namespace fasttrace::rank_one {

constexpr int threads = 256, rows = 4;   // a thread issues four loads before it uses the first
constexpr int64_t most_down = 65535;     // CUDA's limit on a grid's second extent

inline Launch plan(int64_t height, int64_t columns, int width) {
  const int64_t across = (columns + threads * width - 1) / (threads * width), down = (height + rows - 1) / rows;
  return {unsigned(across), unsigned(down < most_down ? down : most_down), threads, 0};
}

// Whether every row of W can be read and written `16 / sizeof(TW)` elements at a time.
template <class TW>
bool takes_packs(const TW* W, int64_t stride, int64_t height, int64_t columns) {
  constexpr int width = 16 / sizeof(TW);
  return uintptr_t(W) % 16 == 0 && columns % width == 0 && (stride % width == 0 || height == 1);
}

// W: (height, columns) with column stride 1. With `along_v`, W is stored transposed: v runs along the rows and u along
// the columns, and alpha still scales u.
template <int width, class TW, class TU, class TV>
__global__ void __launch_bounds__(threads)
    kernel(TW* W, int64_t stride, const TU* u, int64_t u_stride, const TV* v, int64_t v_stride, float alpha,
           int64_t height, int64_t columns, bool along_v) {
  const int64_t j = (int64_t(blockIdx.x) * threads + threadIdx.x) * width;
  if (j >= columns) return;
  float along[width];
#pragma unroll
  for (int x = 0; x < width; ++x)
    along[x] = along_v ? alpha * widen(u[(j + x) * u_stride]) : widen(v[(j + x) * v_stride]);
  for (int64_t i = int64_t(blockIdx.y) * rows; i < height; i += int64_t(gridDim.y) * rows) {
    Pack<TW, width> w[rows];
    float down[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (i + r >= height) continue;  // not break: the registers of w are named at compile time
      w[r] = *reinterpret_cast<const Pack<TW, width>*>(W + (i + r) * stride + j);
      down[r] = along_v ? widen(v[(i + r) * v_stride]) : alpha * widen(u[(i + r) * u_stride]);
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      if (i + r >= height) continue;
#pragma unroll
      for (int x = 0; x < width; ++x) store(&w[r].at[x], fmaf(down[r], along[x], widen(w[r].at[x])));
      *reinterpret_cast<Pack<TW, width>*>(W + (i + r) * stride + j) = w[r];
    }
  }
}

}  // namespace fasttrace::rank_one
