// rank_one_ on the CPU: W += alpha · u vᵀ in one pass over W. The arithmetic is float32 for every dtype of W.
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"

namespace fasttrace {
namespace {

template <class T>
FT_INLINE void add_row(T* row, float scale, const float* v, int64_t count) {
  for (int64_t j = 0; j < count; ++j) store(row + j, widen(row[j]) + scale * v[j]);
}

template <class T>
void add_rows_baseline(T* W, int64_t stride, const float* u, const float* v, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) add_row(W + i * stride, u[i], v, columns);
}

#if defined(__x86_64__)
template <class T>
FT_AVX2 void add_rows_avx2(T* W, int64_t stride, const float* u, const float* v, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) add_row(W + i * stride, u[i], v, columns);
}

template <class T>
FT_AVX512 void add_rows_avx512(T* W, int64_t stride, const float* u, const float* v, int64_t rows,
                               int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) add_row(W + i * stride, u[i], v, columns);
}
#endif

// scale · t as float32, contiguous.
std::vector<float> scaled(const Tensor& t, double scale) {
  const int64_t count = t.size(0), stride = t.stride(0);
  const float factor = float(scale);
  std::vector<float> out(static_cast<size_t>(count));
  if (is_bfloat16(t)) {
    const auto* from = static_cast<const uint16_t*>(t.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) out[size_t(i)] = factor * widen(from[i * stride]);
  } else {
    const auto* from = static_cast<const float*>(t.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) out[size_t(i)] = factor * from[i * stride];
  }
  return out;
}

template <class T>
void add(T* W, int64_t stride, const std::vector<float>& u, const std::vector<float>& v) {
  auto* kernel = add_rows_baseline<T>;
#if defined(__x86_64__)
  if (isa() == Isa::avx2) kernel = add_rows_avx2<T>;
  if (isa() == Isa::avx512) kernel = add_rows_avx512<T>;
#endif
  const int64_t rows = int64_t(u.size()), columns = int64_t(v.size());
  const int64_t grain = 1 + 32768 / columns;
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    kernel(W + begin * stride, stride, u.data() + begin, v.data(), end - begin, columns);
  });
}

}  // namespace

void rank_one_cpu(Tensor W, const Tensor u, const Tensor v, double alpha) {
  check_rank_one(W, u, v);
  check(W.is_cpu() && u.is_cpu() && v.is_cpu(), "rank_one_: expected W, u and v to be on the CPU");
  if (W.size(0) == 0 || W.size(1) == 0) return;
  auto along_rows = scaled(u, alpha), along_columns = scaled(v, 1.0);
  int64_t stride = W.stride(0);
  // Wᵀ += alpha · v uᵀ is the same update, so the contiguous axis always runs innermost.
  if (W.size(1) > 1 && W.stride(1) != 1) {
    std::swap(along_rows, along_columns);
    stride = W.stride(1);
  }
  if (is_bfloat16(W))
    add(static_cast<uint16_t*>(W.mutable_data_ptr()), stride, along_rows, along_columns);
  else
    add(static_cast<float*>(W.mutable_data_ptr()), stride, along_rows, along_columns);
}

}  // namespace fasttrace
