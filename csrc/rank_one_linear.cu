// rank_one_add_ on CUDA: one block a row of y; its warps share the dot products, then its threads the columns.
#include <cstdint>

#include <cuda_bf16.h>

#include "cuda_stream.h"
#include "ops.h"

namespace fasttrace {
namespace {

constexpr int threads = 256, warp = 32;
constexpr int64_t max_width = 8192;  // the dot products of a row are kept in 48 KiB of shared memory

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float* where, float x) { *where = x; }
__device__ inline void store(__nv_bfloat16* where, float x) { *where = __float2bfloat16_rn(x); }

// A row whose edit is out of range becomes NaN, since looking at them from the host would hold up every layer.
template <class T>
__global__ void rank_one_add_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride, const int64_t* edit,
                                    const float* key, const float* value, int64_t edits, int64_t width, int64_t m,
                                    int64_t d) {
  extern __shared__ float along[];
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
  for (int64_t j = threadIdx.x / warp; j < width; j += threads / warp) {
    float sum = 0;
    for (int64_t i = threadIdx.x % warp; i < m; i += warp) sum = fmaf(widen(x[i]), key[j * m + i], sum);
    for (int apart = warp / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (threadIdx.x % warp == 0) along[j] = sum;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < d; c += threads) {
    float sum = 0;
    for (int64_t j = 0; j < width; ++j) sum = fmaf(along[j], value[j * d + c], sum);
    store(y + c, widen(y[c]) + sum);
  }
}

template <class T>
void launch(Tensor& y, const Tensor& x, const Tensor& edit, const Tensor& key, const Tensor& value) {
  const int64_t width = key.size(1);
  rank_one_add_kernel<<<unsigned(y.size(0)), threads, size_t(width) * sizeof(float), stream_of(y)>>>(
      static_cast<T*>(y.mutable_data_ptr()), y.stride(0), static_cast<const T*>(x.const_data_ptr()), x.stride(0),
      static_cast<const int64_t*>(edit.const_data_ptr()), static_cast<const float*>(key.const_data_ptr()),
      static_cast<const float*>(value.const_data_ptr()), key.size(0), width, key.size(2), y.size(1));
  check_launch("rank_one_add_");
}

}  // namespace

void rank_one_add_cuda(Tensor y, const Tensor x, const Tensor edit, const Tensor key, const Tensor value) {
  check_rank_one_add(y, x, edit, key, value);
  check_same_cuda("rank_one_add_", "y and x", y, x);
  check_same_cuda("rank_one_add_", "y and edit", y, edit);
  check_same_cuda("rank_one_add_", "y and key", y, key);
  check_same_cuda("rank_one_add_", "y and value", y, value);
  check(key.size(1) <= max_width, "rank_one_add_: key has ", key.size(1), " updates an edit, at most ", max_width,
        " were wanted on CUDA");
  check(y.size(0) < int64_t(1) << 31, "rank_one_add_: y has ", y.size(0), " rows, less than 2^31 were wanted on CUDA");
  if (y.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  if (is_bfloat16(y))
    launch<__nv_bfloat16>(y, x, edit, key, value);
  else
    launch<float>(y, x, edit, key, value);
}

}  // namespace fasttrace
