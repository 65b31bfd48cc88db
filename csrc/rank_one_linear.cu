// rank_one_add_ on CUDA: the launch. The kernel is in rank_one_linear.cuh.
#include "rank_one_linear.cuh"

#include "cuda_launch.h"
#include "ops.h"

namespace fasttrace {
namespace {

template <class T>
void launch(Tensor& y, const Tensor& x, const Tensor& edit, const Tensor& key, const Tensor& value) {
  const int64_t width = key.size(1);
  start("rank_one_add_", rank_one_add::kernel<T>, rank_one_add::plan(y.size(0), width), stream_of(y),
        static_cast<T*>(y.mutable_data_ptr()), y.stride(0), static_cast<const T*>(x.const_data_ptr()), x.stride(0),
        static_cast<const int64_t*>(edit.const_data_ptr()), static_cast<const float*>(key.const_data_ptr()),
        static_cast<const float*>(value.const_data_ptr()), key.size(0), width, rank_one_add::sharing(width),
        key.size(2), y.size(1));
}

}  // namespace

void rank_one_add_cuda(Tensor y, const Tensor x, const Tensor edit, const Tensor key, const Tensor value) {
  check_rank_one_add(y, x, edit, key, value);
  check_same_cuda("rank_one_add_", "y and x", y, x);
  check_same_cuda("rank_one_add_", "y and edit", y, edit);
  check_same_cuda("rank_one_add_", "y and key", y, key);
  check_same_cuda("rank_one_add_", "y and value", y, value);
  check(key.size(1) <= rank_one_add::max_width, "rank_one_add_: expected key with at most ", rank_one_add::max_width,
        " updates per edit on CUDA, got ", key.size(1));
  check(y.size(0) < int64_t(1) << 31, "rank_one_add_: expected y with fewer than 2^31 rows on CUDA, got ", y.size(0));
  if (y.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  if (is_bfloat16(y))
    launch<bfloat16>(y, x, edit, key, value);
  else
    launch<float>(y, x, edit, key, value);
}

}  // namespace fasttrace
