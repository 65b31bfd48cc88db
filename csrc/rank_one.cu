// rank_one_ on CUDA: the launch, along the contiguous axis of W. The kernel is in rank_one.cuh.
#include "rank_one.cuh"

#include <utility>

#include "cuda_launch.h"
#include "ops.h"

namespace fasttrace {
namespace {

template <class TW, class TU, class TV>
void launch(Tensor& W, const Tensor& u, const Tensor& v, float alpha) {
  constexpr int width = 16 / sizeof(TW);
  const bool transposed = W.size(1) > 1 && W.stride(1) != 1;
  int64_t height = W.size(0), columns = W.size(1), stride = W.stride(0);
  if (transposed) {
    std::swap(height, columns);
    stride = W.stride(1);
  }
  auto* weights = static_cast<TW*>(W.mutable_data_ptr());
  const bool packs = rank_one::takes_packs(weights, stride, height, columns);
  start("rank_one_", packs ? rank_one::kernel<width, TW, TU, TV> : rank_one::kernel<1, TW, TU, TV>,
        rank_one::plan(height, columns, packs ? width : 1), stream_of(W), weights, stride,
        static_cast<const TU*>(u.const_data_ptr()), u.stride(0), static_cast<const TV*>(v.const_data_ptr()),
        v.stride(0), alpha, height, columns, transposed);
}

template <class TW, class TU>
void launch_for_v(Tensor& W, const Tensor& u, const Tensor& v, float alpha) {
  is_bfloat16(v) ? launch<TW, TU, bfloat16>(W, u, v, alpha) : launch<TW, TU, float>(W, u, v, alpha);
}

template <class TW>
void launch_for_u(Tensor& W, const Tensor& u, const Tensor& v, float alpha) {
  is_bfloat16(u) ? launch_for_v<TW, bfloat16>(W, u, v, alpha) : launch_for_v<TW, float>(W, u, v, alpha);
}

}  // namespace

void rank_one_cuda(Tensor W, const Tensor u, const Tensor v, double alpha) {
  check_rank_one(W, u, v);
  check_same_cuda("rank_one_", "W and u", W, u);
  check_same_cuda("rank_one_", "W and v", W, v);
  if (W.size(0) == 0 || W.size(1) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(W.get_device_index());
  if (is_bfloat16(W))
    launch_for_u<bfloat16>(W, u, v, float(alpha));
  else
    launch_for_u<float>(W, u, v, float(alpha));
}

}  // namespace fasttrace
