// second_moment_ on CUDA: the plan of moments.cpp, one thread block a tile, upper triangle multiplied, both written.
#include <cstdint>

#include <cuda_bf16.h>

#include "cuda_stream.h"
#include "ops.h"

namespace fasttrace {
namespace {

constexpr int tile = 64;   // columns of K a side
constexpr int side = 16;   // threads a side
constexpr int each = tile / side;
constexpr int flush = 32;  // rows summed in float32 before they join the float64 sums

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class TC, class TK>
__global__ void __launch_bounds__(side * side)
    second_moment_kernel(TC* C, const TK* K, int64_t n, int64_t m, int64_t row_stride, int64_t column_stride) {
  if (blockIdx.y > blockIdx.x) return;
  __shared__ float left[flush][tile], right[flush][tile];
  const int64_t row = int64_t(blockIdx.y) * tile, column = int64_t(blockIdx.x) * tile;
  const int x = threadIdx.x % side, y = threadIdx.x / side;
  double total[each][each] = {};
  for (int64_t start = 0; start < n; start += flush) {
    for (int at = threadIdx.x; at < flush * tile; at += side * side) {
      const int k = at / tile, j = at % tile;
      const TK* from = K + (start + k) * row_stride;
      const bool inside = start + k < n;
      left[k][j] = inside && row + j < m ? widen(from[(row + j) * column_stride]) : 0.0f;
      right[k][j] = inside && column + j < m ? widen(from[(column + j) * column_stride]) : 0.0f;
    }
    __syncthreads();
    float sum[each][each] = {};
#pragma unroll 8
    for (int k = 0; k < flush; ++k) {
      float a[each], b[each];
#pragma unroll
      for (int i = 0; i < each; ++i) {
        a[i] = left[k][y * each + i];
        b[i] = right[k][x + i * side];
      }
#pragma unroll
      for (int i = 0; i < each; ++i)
#pragma unroll
        for (int j = 0; j < each; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
#pragma unroll
    for (int i = 0; i < each; ++i)
#pragma unroll
      for (int j = 0; j < each; ++j) total[i][j] += double(sum[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < each; ++i)
    for (int j = 0; j < each; ++j) {
      const int64_t r = row + y * each + i, c = column + x + j * side;
      if (r >= m || c >= m) continue;
      C[r * m + c] = TC(double(C[r * m + c]) + total[i][j]);
      if (row != column) C[c * m + r] = TC(double(C[c * m + r]) + total[i][j]);
    }
}

template <class TC, class TK>
void launch(Tensor& C, const Tensor& K) {
  const int64_t n = K.size(0), m = K.size(1);
  const unsigned blocks = unsigned((m + tile - 1) / tile);
  second_moment_kernel<<<dim3(blocks, blocks), side * side, 0, stream_of(C)>>>(
      static_cast<TC*>(C.mutable_data_ptr()), static_cast<const TK*>(K.const_data_ptr()), n, m, K.stride(0),
      K.stride(1));
  check_launch("second_moment_");
}

}  // namespace

void second_moment_cuda(Tensor C, const Tensor K) {
  check_second_moment(C, K);
  check_same_cuda("second_moment_", "C and K", C, K);
  if (K.size(0) == 0 || K.size(1) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(C.get_device_index());
  if (is_float64(C))
    is_bfloat16(K) ? launch<double, __nv_bfloat16>(C, K) : launch<double, float>(C, K);
  else
    is_bfloat16(K) ? launch<float, __nv_bfloat16>(C, K) : launch<float, float>(C, K);
}

}  // namespace fasttrace
