// rank_one_ on CUDA: one thread an element of W, the axis in memory order along x.
#include <cstdint>
#include <utility>

#include <cuda_bf16.h>

#include "cuda_stream.h"
#include "ops.h"

namespace fasttrace {
namespace {

constexpr int threads = 256;
constexpr int64_t max_rows_of_blocks = 65535;  // CUDA's limit on a grid's y extent

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float* where, float x) { *where = x; }
__device__ inline void store(__nv_bfloat16* where, float x) { *where = __float2bfloat16_rn(x); }

// W (rows, columns), unit column stride, += (alpha u) vᵀ; with `along_v`, v runs along the rows and u along the
// columns (W is stored transposed), and alpha still scales u.
template <class TW, class TU, class TV>
__global__ void rank_one_kernel(TW* W, int64_t stride, const TU* u, int64_t u_stride, const TV* v,
                                int64_t v_stride, float alpha, int64_t rows, int64_t columns, bool along_v) {
  const int64_t j = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (j >= columns) return;
  for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
    const float scaled = alpha * widen(u[(along_v ? j : i) * u_stride]);
    const float other = widen(v[(along_v ? i : j) * v_stride]);
    store(W + i * stride + j, fmaf(scaled, other, widen(W[i * stride + j])));
  }
}

template <class TW, class TU, class TV>
void launch(Tensor& W, const Tensor& u, const Tensor& v, float alpha) {
  const bool transposed = W.size(1) > 1 && W.stride(1) != 1;
  int64_t rows = W.size(0), columns = W.size(1), stride = W.stride(0);
  if (transposed) {
    std::swap(rows, columns);
    stride = W.stride(1);
  }
  const dim3 grid(unsigned((columns + threads - 1) / threads),
                  unsigned(rows < max_rows_of_blocks ? rows : max_rows_of_blocks));
  rank_one_kernel<<<grid, threads, 0, stream_of(W)>>>(
      static_cast<TW*>(W.mutable_data_ptr()), stride, static_cast<const TU*>(u.const_data_ptr()), u.stride(0),
      static_cast<const TV*>(v.const_data_ptr()), v.stride(0), alpha, rows, columns, transposed);
  check_launch("rank_one_");
}

template <class TW, class TU>
void launch_for_v(Tensor& W, const Tensor& u, const Tensor& v, float alpha) {
  is_bfloat16(v) ? launch<TW, TU, __nv_bfloat16>(W, u, v, alpha) : launch<TW, TU, float>(W, u, v, alpha);
}

template <class TW>
void launch_for_u(Tensor& W, const Tensor& u, const Tensor& v, float alpha) {
  is_bfloat16(u) ? launch_for_v<TW, __nv_bfloat16>(W, u, v, alpha) : launch_for_v<TW, float>(W, u, v, alpha);
}

}  // namespace

void rank_one_cuda(Tensor W, const Tensor u, const Tensor v, double alpha) {
  check_rank_one(W, u, v);
  check_same_cuda("rank_one_", "W and u", W, u);
  check_same_cuda("rank_one_", "W and v", W, v);
  if (W.size(0) == 0 || W.size(1) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(W.get_device_index());
  if (is_bfloat16(W))
    launch_for_u<__nv_bfloat16>(W, u, v, float(alpha));
  else
    launch_for_u<float>(W, u, v, float(alpha));
}

}  // namespace fasttrace
