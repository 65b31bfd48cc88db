// The CPU ops of a block between its matrix products. Each is a single pass over the rows in float32 and rounds
// wherever the transformers modules round. A gradient is rounded once, at the end.
#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"
#include "vector_exp.h"

namespace fasttrace {
namespace {

// kLanes elements from `from`, or one if n is 1.
template <int64_t n, class T>
FT_INLINE auto get(const T* from) {
  if constexpr (n == 1)
    return widen(*from);
  else
    return load(from);
}

FT_INLINE const float* bits(const float* from) { return from; }
FT_INLINE const uint16_t* bits(const uint16_t* from) { return from; }
#if defined(FT_ROUNDS_BFLOAT16)
FT_INLINE const uint16_t* bits(const Bfloat16* from) { return &from->bits; }
#endif

// value (Floats, or one float) rounded to T and back.
template <class T, class F>
FT_INLINE auto rounded(F value) {
  constexpr int64_t n = sizeof(value) / sizeof(float);
  T stored[n];
  store(stored, value);
  return get<n>(stored);
}

#define FT_EACH [&]<int64_t n>(int64_t j) __attribute__((always_inline))

// Calls body for the elements [begin, end). The compiler vectorises the second loop for every instruction set, but not
// with the instructions of Bfloat16.
template <class T, class Body>
FT_INLINE void each(int64_t begin, int64_t end, const Body& body) {
  int64_t j = begin;
#if defined(FT_ROUNDS_BFLOAT16)
  if constexpr (std::is_same_v<T, Bfloat16>)
    for (; j + kLanes <= end; j += kLanes) body.template operator()<kLanes>(j);
#endif
  for (; j < end; ++j) body.template operator()<1>(j);
}

using Eight = Simd<8>;

struct RmsNorm {
  int64_t width;
  float eps;
  const int64_t* rows;  // null: all rows

  template <class T>
  FT_INLINE void operator()(const T* x, const T* weight, T* __restrict__ out, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = x + (rows ? rows[i] : i) * width;
      T* __restrict__ to = out + i * width;
      // Vectors of eight: GCC compiles wider ones for AVX2 by way of memory.
      Eight::Floats sums[4] = {};
      int64_t j = 0;
      for (; j + 32 <= width; j += 32)
        for (int64_t part = 0; part < 4; ++part) {
          const Eight::Floats a = Eight::load(bits(row + j + 8 * part));
          sums[part] += a * a;
        }
      float squares = 0;
      for (; j < width; ++j) squares += widen(row[j]) * widen(row[j]);
      for (int64_t part = 0; part < 2; ++part) {
        sums[part] += sums[part + 2];
        for (int64_t lane = 0; lane < 8; ++lane) squares += sums[part][lane];
      }
      const float scale = 1.0f / std::sqrt(squares / float(width) + eps);
      each<T>(0, width, FT_EACH { store(to + j, get<n>(weight + j) * rounded<T>(get<n>(row + j) * scale)); });
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
        each<T>(0, half, FT_EACH {
          const auto a = get<n>(first + j), b = get<n>(second + j);
          store(first + j, rounded<T>(a * get<n>(c + j)) - rounded<T>(b * get<n>(s + j)));
          store(second + j, rounded<T>(b * get<n>(c + j + half)) + rounded<T>(a * get<n>(s + j + half)));
        });
      }
    }
  }
};

struct SiluMul {
  template <class T>
  FT_INLINE void operator()(const T* up, T* __restrict__ gate, int64_t begin, int64_t end) const {
    each<T>(begin, end, FT_EACH {
      const auto x = get<n>(gate + j);
      store(gate + j, rounded<T>(x / (1.0f + vector_exp(-x))) * get<n>(up + j));
    });
  }
};

// x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh u) / 2 without the cancellation.
struct GeluTanh {
  template <class T>
  FT_INLINE void operator()(T* __restrict__ at, int64_t begin, int64_t end) const {
    each<T>(begin, end, FT_EACH {
      const auto x = get<n>(at + j);
      const auto u = 0.79788456080286536f * x * (1.0f + 0.044715f * x * x);
      store(at + j, x / (1.0f + vector_exp(-2.0f * u)));
    });
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
        each<T>(0, width, FT_EACH { store(to + j, get<n>(from + j) + get<n>(added + j)); });
      }
    }
  }
};

// The gradient of the norm with respect to x, from `grad`, that of its result: with s = 1 / sqrt(mean x^2 + eps) and
// g = grad * weight, s (g - x s^2 mean(g x)).
struct RmsNormBackward {
  int64_t width;
  float eps;

  template <class T>
  FT_INLINE void operator()(const T* grad, const T* x, const T* weight, T* __restrict__ out, int64_t begin,
                            int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const T *from = grad + i * width, *row = x + i * width;
      T* __restrict__ to = out + i * width;
      // Vectors of eight, as in RmsNorm.
      Eight::Floats squares[2] = {}, along[2] = {};
      int64_t j = 0;
      for (; j + 16 <= width; j += 16)
        for (int64_t part = 0; part < 2; ++part) {
          const int64_t k = j + 8 * part;
          const Eight::Floats value = Eight::load(bits(row + k));
          squares[part] += value * value;
          along[part] += value * (Eight::load(bits(from + k)) * Eight::load(bits(weight + k)));
        }
      float square = 0, product = 0;
      for (; j < width; ++j) {
        square += widen(row[j]) * widen(row[j]);
        product += widen(row[j]) * (widen(from[j]) * widen(weight[j]));
      }
      squares[0] += squares[1];
      along[0] += along[1];
      for (int64_t lane = 0; lane < 8; ++lane) {
        square += squares[0][lane];
        product += along[0][lane];
      }
      const float scale = 1.0f / std::sqrt(square / float(width) + eps);
      const float back = scale * scale * (product / float(width));
      each<T>(0, width, FT_EACH {
        store(to + j, scale * (get<n>(from + j) * get<n>(weight + j) - get<n>(row + j) * back));
      });
    }
  }
};

// The gradient of silu(gate) * up with respect to both, from `grad`, that of the product.
struct SiluMulBackward {
  template <class T>
  FT_INLINE void operator()(const T* grad, const T* gate, const T* up, T* __restrict__ grad_gate,
                            T* __restrict__ grad_up, int64_t begin, int64_t end) const {
    each<T>(begin, end, FT_EACH {
      const auto g = get<n>(grad + j), x = get<n>(gate + j);
      const auto sigmoid = 1.0f / (1.0f + vector_exp(-x));
      store(grad_up + j, g * (x * sigmoid));
      store(grad_gate + j, g * get<n>(up + j) * sigmoid * (1.0f + x * (1.0f - sigmoid)));
    });
  }
};

#undef FT_EACH

// Runs body over [0, count) on all of torch's threads; each index writes `step` elements.
template <class Body, class... Pointers>
void over(const Body& body, int64_t count, int64_t step, Pointers... pointers) {
  auto* kernel = compiled_here<Body, Pointers..., int64_t, int64_t>();
  torch::stable::parallel_for(0, count, 1 + 32768 / step, [&](int64_t begin, int64_t end) {
    kernel(body, pointers..., begin, end);
  });
}

// Calls run with a pointer of the type of x's elements.
template <class Run>
void by_type(const Tensor& x, const Run& run) {
  if (!is_bfloat16(x)) return run(static_cast<float*>(nullptr));
#if defined(FT_ROUNDS_BFLOAT16)
  if (has_avx512_bf16()) return run(static_cast<Bfloat16*>(nullptr));
#endif
  run(static_cast<uint16_t*>(nullptr));
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
  by_type(x, [&]<class T>(T*) { over(body, out.size(0), x.size(1), read<T>(x), read<T>(weight), write<T>(out)); });
}

void rms_norm_backward_cpu(const Tensor grad, const Tensor x, const Tensor weight, double eps, Tensor grad_x) {
  check_rms_norm_backward(grad, x, weight, grad_x);
  if (x.numel() == 0) return;
  const RmsNormBackward body{x.size(1), float(eps)};
  by_type(x, [&]<class T>(T*) {
    over(body, x.size(0), x.size(1), read<T>(grad), read<T>(x), read<T>(weight), write<T>(grad_x));
  });
}

void rotary_cpu(Tensor x, const Tensor cos, const Tensor sin) {
  check_rotary(x, cos, sin);
  if (x.numel() == 0) return;
  const Rotary body{x.size(1), x.size(2)};
  const int64_t step = x.size(1) * x.size(2);
  by_type(x, [&]<class T>(T*) { over(body, x.size(0), step, read<T>(cos), read<T>(sin), write<T>(x)); });
}

void silu_mul_cpu(Tensor gate, const Tensor up) {
  check_silu_mul(gate, up);
  by_type(gate, [&]<class T>(T*) { over(SiluMul{}, gate.numel(), 1, read<T>(up), write<T>(gate)); });
}

void silu_mul_backward_cpu(const Tensor grad, const Tensor gate, const Tensor up, Tensor grad_gate, Tensor grad_up) {
  check_silu_mul_backward(grad, gate, up, grad_gate, grad_up);
  by_type(grad, [&]<class T>(T*) {
    over(SiluMulBackward{}, grad.numel(), 1, read<T>(grad), read<T>(gate), read<T>(up), write<T>(grad_gate),
         write<T>(grad_up));
  });
}

void gelu_tanh_cpu(Tensor x) {
  check(is_float32(x) || is_bfloat16(x), "gelu_tanh_: expected x to be float32 or bfloat16");
  check(x.is_contiguous() && x.is_cpu(), "gelu_tanh_: expected x to be contiguous, on the CPU");
  by_type(x, [&]<class T>(T*) { over(GeluTanh{}, x.numel(), 1, write<T>(x)); });
}

void window_restore_cpu(const Tensor h, const Tensor out, const Tensor base, const Tensor source, Tensor result) {
  check_window_restore(h, out, base, source, result);
  check_rows("window_restore", "base", base, -1, h.size(0));
  check_rows("window_restore", "source", source, -1, out.size(0));
  if (result.numel() == 0) return;
  const WindowRestore body{h.size(1), read<int64_t>(base), read<int64_t>(source)};
  by_type(h, [&]<class T>(T*) { over(body, result.size(0), h.size(1), read<T>(h), read<T>(out), write<T>(result)); });
}

}  // namespace fasttrace
