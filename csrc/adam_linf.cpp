// adam_linf_ on the CPU: a step of Adam and the clamp in one pass over delta, m and v. The gradient is computed from
// its factors tile by tile, in registers, and never exists as a whole.
#include <algorithm>
#include <cmath>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"

namespace fasttrace {
namespace {

constexpr int group = 4;              // rows whose gradients are computed together, because they read the same keys
constexpr int64_t block = 8 * group;  // rows per task
constexpr int64_t span = 2048;        // columns that a block finishes for all its rows, so that the keys stay in cache

struct Step {
  float first, beta2, second;  // 1 - beta1, beta2, 1 - beta2
  float size, root;            // lr / (1 - beta1^t), sqrt(1 - beta2^t)
  float eps, limit;            // limit: infinite for none
};

// The factors of one item: `count` rows of g (·, d) and of k (·, n).
struct Factors {
  const float *g, *k;
  int64_t g_stride, k_stride, count;
};

// The weight change and the moments of one item, (d, n) each.
struct State {
  float *delta, *m, *v;
  int64_t n;
};

FT_INLINE void update(const Step& step, const float* gradient, const State& to, int64_t at, int64_t count) {
  float* __restrict__ delta = to.delta + at;
  float* __restrict__ m = to.m + at;
  float* __restrict__ v = to.v + at;
  for (int64_t j = 0; j < count; ++j) {
    const float G = gradient[j];
    const float mean = m[j] + step.first * (G - m[j]);
    const float square = step.beta2 * v[j] + step.second * G * G;
    const float moved = delta[j] - step.size * mean / (std::sqrt(square) / step.root + step.eps);
    // Written so that a NaN stays NaN.
    const float above = moved < -step.limit ? -step.limit : moved;
    m[j] = mean;
    v[j] = square;
    delta[j] = above > step.limit ? step.limit : above;
  }
}

// Updates rows i to i + MR and columns j to `end` of one item. A vector has V floats.
template <int V, int MR>
FT_INLINE void rows(const Step& step, const Factors& from, const State& to, int64_t i, int64_t j, int64_t end) {
  typedef float Vector __attribute__((vector_size(V * 4), aligned(4), may_alias));
  constexpr int64_t W = 2 * V;
  alignas(64) float gradient[MR][W];
  for (; j + W <= end; j += W) {
    Vector sum[MR][2] = {};
    const float *g = from.g + i, *k = from.k + j;
    for (int64_t row = 0; row < from.count; ++row, g += from.g_stride, k += from.k_stride) {
      const Vector k0 = *(const Vector*)k, k1 = *(const Vector*)(k + V);
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
        sum[r][0] += g[r] * k0;
        sum[r][1] += g[r] * k1;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; ++r) {
      *(Vector*)gradient[r] = sum[r][0];
      *(Vector*)(gradient[r] + V) = sum[r][1];
    }
    for (int r = 0; r < MR; ++r) update(step, gradient[r], to, (i + r) * to.n + j, W);
  }
  if (j == end) return;
  const int64_t rest = end - j;
  for (int r = 0; r < MR; ++r) {
    std::fill(gradient[r], gradient[r] + rest, 0.0f);
    for (int64_t row = 0; row < from.count; ++row) {
      const float g = from.g[row * from.g_stride + i + r];
      const float* k = from.k + row * from.k_stride + j;
      for (int64_t c = 0; c < rest; ++c) gradient[r][c] += g * k[c];
    }
    update(step, gradient[r], to, (i + r) * to.n + j, rest);
  }
}

template <int V>
FT_INLINE void some_rows(const Step& step, const Factors& from, const State& to, int64_t begin, int64_t end) {
  for (int64_t j = 0; j < to.n; j += span) {
    const int64_t past = std::min(j + span, to.n);
    int64_t i = begin;
    for (; i + group <= end; i += group) rows<V, group>(step, from, to, i, j, past);
    for (; i < end; ++i) rows<V, 1>(step, from, to, i, j, past);
  }
}

void rows_baseline(const Step& step, const Factors& from, const State& to, int64_t begin, int64_t end) {
  some_rows<4>(step, from, to, begin, end);
}

#if defined(__x86_64__)
FT_AVX2 void rows_avx2(const Step& step, const Factors& from, const State& to, int64_t begin, int64_t end) {
  some_rows<8>(step, from, to, begin, end);
}

FT_AVX512 void rows_avx512(const Step& step, const Factors& from, const State& to, int64_t begin, int64_t end) {
  some_rows<16>(step, from, to, begin, end);
}
#endif

// The rows of a factor as float32: in place, or in `copy` where they are bfloat16.
const float* widened(const Tensor& t, int64_t& stride, std::vector<float>& copy) {
  if (is_float32(t)) {
    stride = t.stride(0);
    return static_cast<const float*>(t.const_data_ptr());
  }
  const auto* from = static_cast<const uint16_t*>(t.const_data_ptr());
  const int64_t width = t.size(1), apart = t.stride(0);
  copy.resize(size_t(t.numel()));
  torch::stable::parallel_for(0, t.size(0), 1 + 32768 / width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < width; ++j) copy[size_t(i * width + j)] = widen(from[i * apart + j]);
  });
  stride = width;
  return copy.data();
}

}  // namespace

void adam_linf_cpu(Tensor delta, Tensor m, Tensor v, const Tensor g, const Tensor k, const Tensor begin,
                   std::optional<Tensor> active, int64_t step, double lr, double limit, double beta1, double beta2,
                   double eps) {
  check_adam_linf(delta, m, v, g, k, begin, active, step, limit);
  const int64_t items = delta.size(0), d = delta.size(1), n = delta.size(2);
  if (delta.numel() == 0) return;
  const auto* first = static_cast<const int64_t*>(begin.const_data_ptr());
  check(first[0] == 0 && first[items] == g.size(0), "adam_linf_: expected begin to go from 0 to ", g.size(0),
        ", got ", first[0], " to ", first[items]);
  const bool* is_active = active ? static_cast<const bool*>(active->const_data_ptr()) : nullptr;
  std::vector<int64_t> chosen;
  for (int64_t p = 0; p < items; ++p) {
    check(first[p] <= first[p + 1], "adam_linf_: expected begin to ascend, got ", first[p], " followed by ",
          first[p + 1]);
    if (is_active == nullptr || is_active[p]) chosen.push_back(p);
  }
  const double t = double(step);
  const Step numbers{float(1 - beta1), float(beta2), float(1 - beta2), float(lr / (1 - std::pow(beta1, t))),
                     float(std::sqrt(1 - std::pow(beta2, t))), float(eps), float(limit)};
  std::vector<float> g_copy, k_copy;
  int64_t g_stride = 0, k_stride = 0;
  const float* g_rows = widened(g, g_stride, g_copy);
  const float* k_rows = widened(k, k_stride, k_copy);
  auto *to_delta = static_cast<float*>(delta.mutable_data_ptr()), *to_m = static_cast<float*>(m.mutable_data_ptr()),
       *to_v = static_cast<float*>(v.mutable_data_ptr());

  auto* kernel = rows_baseline;
#if defined(__x86_64__)
  if (isa() == Isa::avx2) kernel = rows_avx2;
  if (isa() == Isa::avx512) kernel = rows_avx512;
#endif
  const int64_t blocks = (d + block - 1) / block;
  const int64_t grain = 1 + 32768 / (block * n);
  torch::stable::parallel_for(0, int64_t(chosen.size()) * blocks, grain, [&](int64_t from, int64_t past) {
    for (int64_t unit = from; unit < past; ++unit) {
      const int64_t p = chosen[size_t(unit / blocks)], row = unit % blocks * block, at = p * d * n;
      const Factors factors{g_rows + first[p] * g_stride, k_rows + first[p] * k_stride, g_stride, k_stride,
                            first[p + 1] - first[p]};
      kernel(numbers, factors, State{to_delta + at, to_m + at, to_v + at, n}, row, std::min(row + block, d));
    }
  });
}

}  // namespace fasttrace
