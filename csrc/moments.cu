// second_moment_ on CUDA: the launch. The kernel is in moments.cuh.
#include "moments.cuh"

#include "cuda_launch.h"
#include "ops.h"

namespace fasttrace {
namespace {

template <class TC, class TK>
void launch(Tensor& C, const Tensor& K) {
  const auto* keys = static_cast<const TK*>(K.const_data_ptr());
  const int64_t n = K.size(0), m = K.size(1), row_stride = K.stride(0), column_stride = m == 1 ? 1 : K.stride(1);
  start("second_moment_", second_moment::kernel<TC, TK>, second_moment::plan<TK>(m), stream_of(C),
        static_cast<TC*>(C.mutable_data_ptr()), keys, n, m, row_stride, column_stride,
        second_moment::reads_packs(keys, row_stride, column_stride));
}

}  // namespace

void second_moment_cuda(Tensor C, const Tensor K) {
  check_second_moment(C, K);
  check_same_cuda("second_moment_", "C and K", C, K);
  if (K.size(0) == 0 || K.size(1) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(C.get_device_index());
  if (is_float64(C))
    is_bfloat16(K) ? launch<double, bfloat16>(C, K) : launch<double, float>(C, K);
  else
    is_bfloat16(K) ? launch<float, bfloat16>(C, K) : launch<float, float>(C, K);
}

}  // namespace fasttrace
