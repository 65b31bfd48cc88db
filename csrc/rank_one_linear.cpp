// rank_one_add_ on the CPU: each row of y gets the update of its own edit, in float32 arithmetic, and is rounded once.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"

namespace fasttrace {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t tile = 64;  // columns of y that are summed over the updates at a time

// Every edit's keys (width, m) and values (width, d), float32.
struct Edits {
  const float *key, *value;
  int64_t width, m, d;
};

template <class T>
FT_INLINE float dot(const T* x, const float* key, int64_t count) {
  float lanes[2 * kLanes] = {};
  int64_t j = 0;
  for (; j + 2 * kLanes <= count; j += 2 * kLanes)
    for (int64_t lane = 0; lane < 2 * kLanes; ++lane) lanes[lane] += widen(x[j + lane]) * key[j + lane];
  float sum = 0;
  for (; j < count; ++j) sum += widen(x[j]) * key[j];
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane] + lanes[lane + kLanes];
  return sum;
}

// y (d,) += Σ_j along[j] · value[j].
template <class T>
FT_INLINE void add_values(T* __restrict__ y, const float* along, const float* value, int64_t width, int64_t d) {
  for (int64_t c = 0; c < d; c += tile) {
    const int64_t count = std::min(tile, d - c);
    float sum[tile] = {};
    for (int64_t j = 0; j < width; ++j) {
      const float* from = value + j * d + c;
      for (int64_t i = 0; i < count; ++i) sum[i] += along[j] * from[i];
    }
    for (int64_t i = 0; i < count; ++i) store(y + c + i, widen(y[c + i]) + sum[i]);
  }
}

template <class T>
FT_INLINE void add_row(T* y, const T* x, int64_t edit, const Edits& edits, float* along) {
  const float* key = edits.key + edit * edits.width * edits.m;
  for (int64_t j = 0; j < edits.width; ++j) along[j] = dot(x, key + j * edits.m, edits.m);
  add_values(y, along, edits.value + edit * edits.width * edits.d, edits.width, edits.d);
}

template <class T>
void row_baseline(T* y, const T* x, int64_t edit, const Edits& edits, float* along) {
  add_row(y, x, edit, edits, along);
}

#if defined(__x86_64__)
template <class T>
FT_AVX2 void row_avx2(T* y, const T* x, int64_t edit, const Edits& edits, float* along) {
  add_row(y, x, edit, edits, along);
}

template <class T>
FT_AVX512 void row_avx512(T* y, const T* x, int64_t edit, const Edits& edits, float* along) {
  add_row(y, x, edit, edits, along);
}
#endif

template <class T>
void add(Tensor& y, const Tensor& x, const int64_t* edit, const Edits& edits) {
  auto* kernel = row_baseline<T>;
#if defined(__x86_64__)
  if (isa() == Isa::avx2) kernel = row_avx2<T>;
  if (isa() == Isa::avx512) kernel = row_avx512<T>;
#endif
  auto* to = static_cast<T*>(y.mutable_data_ptr());
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  const int64_t to_stride = y.stride(0), from_stride = x.stride(0);
  const int64_t grain = 1 + 32768 / (1 + edits.width * (edits.m + edits.d));
  torch::stable::parallel_for(0, y.size(0), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> along(static_cast<size_t>(edits.width));
    for (int64_t r = begin; r < end; ++r)
      if (edit[r] >= 0) kernel(to + r * to_stride, from + r * from_stride, edit[r], edits, along.data());
  });
}

}  // namespace

void rank_one_add_cpu(Tensor y, const Tensor x, const Tensor edit, const Tensor key, const Tensor value) {
  check_rank_one_add(y, x, edit, key, value);
  check(y.is_cpu() && x.is_cpu() && edit.is_cpu() && key.is_cpu() && value.is_cpu(),
        "rank_one_add_: expected y, x, edit, key and value to be on the CPU");
  // Edits are given by index, so a wrong index would read outside the tensor.
  const auto* number = static_cast<const int64_t*>(edit.const_data_ptr());
  for (int64_t r = 0; r < edit.size(0); ++r)
    check(number[r] >= -1 && number[r] < key.size(0), "rank_one_add_: expected edit[", r, "] in -1 … ",
          key.size(0) - 1, ", got ", number[r]);
  if (y.numel() == 0) return;
  const Edits edits{static_cast<const float*>(key.const_data_ptr()), static_cast<const float*>(value.const_data_ptr()),
                    key.size(1), key.size(2), value.size(2)};
  if (is_bfloat16(y))
    add<uint16_t>(y, x, number, edits);
  else
    add<float>(y, x, number, edits);
}

}  // namespace fasttrace
