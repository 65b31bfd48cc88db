// The CPU ops of a block between its matrix products. Each is a single pass over the rows in float32 and rounds
// wherever the transformers modules round.
#include <cmath>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"
#include "vector_exp.h"

namespace fasttrace {
namespace {

constexpr int64_t kLanes = 16;
using Lanes = Simd<kLanes>;

// value rounded to T and back.
template <class T>
FT_INLINE float rounded(float value) {
  T stored;
  store(&stored, value);
  return widen(stored);
}

struct RmsNorm {
  int64_t width;
  float eps;
  const int64_t* rows;  // null: all rows

  template <class T>
  FT_INLINE void operator()(const T* x, const T* weight, T* __restrict__ out, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = x + (rows ? rows[i] : i) * width;
      T* __restrict__ to = out + i * width;
      Lanes::Floats sums[2] = {};
      int64_t j = 0;
      for (; j + 2 * kLanes <= width; j += 2 * kLanes) {
        const Lanes::Floats a = Lanes::load(row + j), b = Lanes::load(row + j + kLanes);
        sums[0] += a * a;
        sums[1] += b * b;
      }
      float squares = 0;
      for (; j < width; ++j) squares += widen(row[j]) * widen(row[j]);
      sums[0] += sums[1];
      for (int64_t lane = 0; lane < kLanes; ++lane) squares += sums[0][lane];
      const float scale = 1.0f / std::sqrt(squares / float(width) + eps);
      for (int64_t k = 0; k < width; ++k) store(to + k, widen(weight[k]) * rounded<T>(widen(row[k]) * scale));
    }
  }
};

struct Rotary {
  int64_t heads, head_dim;

  template <class T>
  FT_INLINE void operator()(const T* cos, const T* sin, T* x, int64_t begin, int64_t end) const {
    const int64_t half = head_dim / 2;
    for (int64_t i = begin; i < end; ++i) {
      const T *c = cos + i * head_dim, *s = sin + i * head_dim;
      for (int64_t head = 0; head < heads; ++head) {
        T* __restrict__ first = x + (i * heads + head) * head_dim;
        T* __restrict__ second = first + half;
        for (int64_t j = 0; j < half; ++j) {
          const float a = widen(first[j]), b = widen(second[j]);
          store(first + j, rounded<T>(a * widen(c[j])) - rounded<T>(b * widen(s[j])));
          store(second + j, rounded<T>(b * widen(c[j + half])) + rounded<T>(a * widen(s[j + half])));
        }
      }
    }
  }
};

struct SiluMul {
  template <class T>
  FT_INLINE void operator()(const T* up, T* __restrict__ gate, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const float x = widen(gate[i]);
      store(gate + i, rounded<T>(x / (1.0f + vector_exp(-x))) * widen(up[i]));
    }
  }
};

// x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh u) / 2 without the cancellation.
struct GeluTanh {
  template <class T>
  FT_INLINE void operator()(T* __restrict__ at, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const float x = widen(at[i]);
      const float u = 0.79788456080286536f * x * (1.0f + 0.044715f * x * x);
      store(at + i, x / (1.0f + vector_exp(-2.0f * u)));
    }
  }
};

struct WindowRestore {
  int64_t width;
  const int64_t *base, *source;

  template <class T>
  FT_INLINE void operator()(const T* h, const T* out, T* __restrict__ result, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      T* __restrict__ to = result + i * width;
      // A row of -1 is zero, so a sum with one such row is a copy of the other.
      if (base[i] < 0 && source[i] < 0) {
        std::memset(to, 0, size_t(width) * sizeof(T));
      } else if (base[i] < 0 || source[i] < 0) {
        std::memcpy(to, base[i] < 0 ? out + source[i] * width : h + base[i] * width, size_t(width) * sizeof(T));
      } else {
        const T *from = h + base[i] * width, *added = out + source[i] * width;
        for (int64_t j = 0; j < width; ++j) store(to + j, widen(from[j]) + widen(added[j]));
      }
    }
  }
};

// Runs body over [0, count) on all of torch's threads; each index writes `step` elements.
template <class Body, class... Pointers>
void over(const Body& body, int64_t count, int64_t step, Pointers... pointers) {
  auto* kernel = compiled_here<Body, Pointers..., int64_t, int64_t>();
  torch::stable::parallel_for(0, count, 1 + 32768 / step, [&](int64_t begin, int64_t end) {
    kernel(body, pointers..., begin, end);
  });
}

template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* write(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Rows are given by index, so a wrong index would read outside the tensor.
void check_rows(const char* op, const char* name, const Tensor& rows, int64_t lowest, int64_t end) {
  const int64_t* number = read<int64_t>(rows);
  for (int64_t i = 0; i < rows.size(0); ++i)
    check(number[i] >= lowest && number[i] < end, op, ": expected ", name, "[", i, "] in ", lowest, " … ", end - 1,
          ", got ", number[i]);
}

}  // namespace

void rms_norm_cpu(const Tensor x, const Tensor weight, double eps, std::optional<Tensor> rows, Tensor out) {
  check_rms_norm(x, weight, rows, out);
  if (out.numel() == 0) return;
  if (rows) check_rows("rms_norm", "rows", *rows, 0, x.size(0));
  const RmsNorm body{x.size(1), float(eps), rows ? read<int64_t>(*rows) : nullptr};
  if (is_bfloat16(x))
    over(body, out.size(0), x.size(1), read<uint16_t>(x), read<uint16_t>(weight), write<uint16_t>(out));
  else
    over(body, out.size(0), x.size(1), read<float>(x), read<float>(weight), write<float>(out));
}

void rotary_cpu(Tensor x, const Tensor cos, const Tensor sin) {
  check_rotary(x, cos, sin);
  if (x.numel() == 0) return;
  const Rotary body{x.size(1), x.size(2)};
  const int64_t step = x.size(1) * x.size(2);
  if (is_bfloat16(x))
    over(body, x.size(0), step, read<uint16_t>(cos), read<uint16_t>(sin), write<uint16_t>(x));
  else
    over(body, x.size(0), step, read<float>(cos), read<float>(sin), write<float>(x));
}

void silu_mul_cpu(Tensor gate, const Tensor up) {
  check_silu_mul(gate, up);
  if (is_bfloat16(gate))
    over(SiluMul{}, gate.numel(), 1, read<uint16_t>(up), write<uint16_t>(gate));
  else
    over(SiluMul{}, gate.numel(), 1, read<float>(up), write<float>(gate));
}

void gelu_tanh_cpu(Tensor x) {
  check(is_float32(x) || is_bfloat16(x), "gelu_tanh_: expected x to be float32 or bfloat16");
  check(x.is_contiguous() && x.is_cpu(), "gelu_tanh_: expected x to be contiguous, on the CPU");
  if (is_bfloat16(x))
    over(GeluTanh{}, x.numel(), 1, write<uint16_t>(x));
  else
    over(GeluTanh{}, x.numel(), 1, write<float>(x));
}

void window_restore_cpu(const Tensor h, const Tensor out, const Tensor base, const Tensor source, Tensor result) {
  check_window_restore(h, out, base, source, result);
  check_rows("window_restore", "base", base, -1, h.size(0));
  check_rows("window_restore", "source", source, -1, out.size(0));
  if (result.numel() == 0) return;
  const WindowRestore body{h.size(1), read<int64_t>(base), read<int64_t>(source)};
  if (is_bfloat16(h))
    over(body, result.size(0), h.size(1), read<uint16_t>(h), read<uint16_t>(out), write<uint16_t>(result));
  else
    over(body, result.size(0), h.size(1), read<float>(h), read<float>(out), write<float>(result));
}

}  // namespace fasttrace
