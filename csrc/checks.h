// Argument checks. Each error is one sentence with the op, the argument, what was expected and what was given.
#pragma once

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace fasttrace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws a sentence made of its arguments. It names no file or line, because a user reads it.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

inline bool rows_without_gaps(const Tensor& t) { return t.stride(1) == 1 || t.size(1) <= 1 || t.size(0) == 0; }

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << '(';
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << (t.dim() == 1 ? ",)" : ")");
  return out.str();
}

inline bool is_float32(const Tensor& t) { return t.scalar_type() == ScalarType::Float; }
inline bool is_float64(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }
inline bool is_bfloat16(const Tensor& t) { return t.scalar_type() == ScalarType::BFloat16; }

inline void check_second_moment(const Tensor& C, const Tensor& K) {
  check(C.dim() == 2 && C.size(0) == C.size(1),
        "second_moment_: expected C to be a square matrix (m, m), got shape ", shape_of(C));
  check(is_float32(C) || is_float64(C), "second_moment_: expected C to be float32 or float64");
  check(C.is_contiguous(), "second_moment_: expected C to be contiguous, got strides (", C.stride(0), ", ",
        C.stride(1), ") for shape ", shape_of(C));
  check(K.dim() == 2 && K.size(1) == C.size(0), "second_moment_: expected K of shape (n, ", C.size(0),
        ") to match C, got ", shape_of(K));
  check(is_float32(K) || is_bfloat16(K), "second_moment_: expected K to be float32 or bfloat16");
}

inline void check_rank_one(const Tensor& W, const Tensor& u, const Tensor& v) {
  check(W.dim() == 2, "rank_one_: expected W to be a matrix (a, b), got shape ", shape_of(W));
  check(is_float32(W) || is_bfloat16(W), "rank_one_: expected W to be float32 or bfloat16");
  check(u.dim() == 1 && u.size(0) == W.size(0), "rank_one_: expected u of shape (", W.size(0),
        ",) to match the rows of W, got ", shape_of(u));
  check(v.dim() == 1 && v.size(0) == W.size(1), "rank_one_: expected v of shape (", W.size(1),
        ",) to match the columns of W, got ", shape_of(v));
  check(is_float32(u) || is_bfloat16(u), "rank_one_: expected u to be float32 or bfloat16");
  check(is_float32(v) || is_bfloat16(v), "rank_one_: expected v to be float32 or bfloat16");
  // An axis of extent one never steps, so its stride says nothing about the layout.
  const bool rows = W.stride(1) == 1 || W.size(1) <= 1, columns = W.stride(0) == 1 || W.size(0) <= 1;
  const bool apart = (rows && (W.size(0) <= 1 || W.stride(0) >= W.size(1))) ||
                     (columns && (W.size(1) <= 1 || W.stride(1) >= W.size(0)));
  check(apart || W.size(0) == 0 || W.size(1) == 0,
        "rank_one_: expected W with one stride of 1 and the other at least the length of that axis, got strides (",
        W.stride(0), ", ", W.stride(1), ")");
}

inline void check_linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, const Tensor& out) {
  check(x.dim() == 2 && w.dim() == 2 && w.size(1) == x.size(1) && x.size(1) > 0,
        "linear_: expected x of shape (m, k) and w (n, k) with k of 1 or more, got x ", shape_of(x), " and w ",
        shape_of(w));
  check(out.dim() == 2 && out.size(0) == x.size(0) && out.size(1) == w.size(0), "linear_: expected out of shape (",
        x.size(0), ", ", w.size(0), "), got ", shape_of(out));
  for (const Tensor* t : {&x, &w, &out})
    check(is_float32(*t) && t->is_cpu(), "linear_: expected x, w and out to be float32, on the CPU");
  check(rows_without_gaps(x), "linear_: expected x with rows without gaps, got strides (", x.stride(0), ", ",
        x.stride(1), ")");
  // An axis of extent one never steps, so its stride says nothing about the layout.
  check(w.stride(1) == 1 || w.size(1) <= 1 || w.stride(0) == 1 || w.size(0) <= 1,
        "linear_: expected w with one stride of 1, got strides (", w.stride(0), ", ", w.stride(1), ")");
  check(out.is_contiguous(), "linear_: expected out to be contiguous, got strides (", out.stride(0), ", ",
        out.stride(1), ")");
  if (bias)
    check(bias->dim() == 1 && bias->size(0) == w.size(0) && is_float32(*bias) && bias->is_contiguous() &&
              bias->is_cpu(),
          "linear_: expected bias to be contiguous float32 of shape (", w.size(0), ",) on the CPU, got shape ",
          shape_of(*bias));
}

inline void check_prefix_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& table,
                                   double softcap, const std::optional<Tensor>& alibi,
                                   const std::optional<Tensor>& sinks, const Tensor& out) {
  check(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && k.size(2) == q.size(2) && k.size(1) > 0 &&
            q.size(1) % k.size(1) == 0 && shape_of(k) == shape_of(v),
        "prefix_attention: expected q (Nq, H, hd), k and v (N, Hkv, hd), with H a multiple of Hkv, got q ",
        shape_of(q), ", k ", shape_of(k), ", v ", shape_of(v));
  check(out.dim() == 2 && out.size(0) == q.size(0) && out.size(1) == q.size(1) * q.size(2),
        "prefix_attention: expected out of shape (Nq, H * hd), got ", shape_of(out));
  check(table.dim() == 2 && table.size(1) == 8 && table.scalar_type() == ScalarType::Long,
        "prefix_attention: expected table to be int64 of shape (S, 8), got shape ", shape_of(table));
  for (const Tensor* t : {&q, &k, &v, &out}) {
    check(t->scalar_type() == q.scalar_type() && (is_float32(*t) || is_bfloat16(*t)),
          "prefix_attention: expected q, k, v and out to be all float32 or all bfloat16");
    check(t->is_contiguous() && t->is_cpu(),
          "prefix_attention: expected q, k, v and out to be contiguous, on the CPU");
  }
  check(table.is_contiguous() && table.is_cpu(), "prefix_attention: expected table to be contiguous, on the CPU");
  check(softcap >= 0, "prefix_attention: expected softcap to be positive, or 0 for none, got ", softcap);
  for (const auto& [name, t] : {std::pair{"alibi", &alibi}, std::pair{"sinks", &sinks}})
    if (*t)
      check((*t)->dim() == 1 && (*t)->size(0) == q.size(1) && is_float32(**t) && (*t)->is_contiguous() &&
                (*t)->is_cpu(),
            "prefix_attention: expected ", name, " to be contiguous float32 of shape (", q.size(1),
            ",) on the CPU, got shape ", shape_of(**t));
}

// Every op of rows.cpp needs contiguous CPU tensors of one dtype, float32 or bfloat16.
inline void check_alike(const char* op, const char* names, std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  for (const Tensor* t : tensors) {
    check(t->scalar_type() == first.scalar_type() && (is_float32(*t) || is_bfloat16(*t)), op, ": expected ", names,
          " to be all float32 or all bfloat16");
    check(t->is_contiguous() && t->is_cpu(), op, ": expected ", names, " to be contiguous, on the CPU");
  }
}

inline void check_row_numbers(const char* op, const char* name, const Tensor& rows) {
  check(rows.dim() == 1 && rows.scalar_type() == ScalarType::Long && rows.is_contiguous() && rows.is_cpu(), op,
        ": expected ", name, " to be contiguous int64 of shape (n,) on the CPU, got shape ", shape_of(rows));
}

inline void check_rms_norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& rows,
                           const Tensor& out) {
  check(x.dim() == 2 && weight.dim() == 1 && weight.size(0) == x.size(1),
        "rms_norm: expected x of shape (N, d) and weight (d,), got x ", shape_of(x), " and weight ",
        shape_of(weight));
  if (rows) check_row_numbers("rms_norm", "rows", *rows);
  const int64_t count = rows ? rows->size(0) : x.size(0);
  check(out.dim() == 2 && out.size(0) == count && out.size(1) == x.size(1), "rms_norm: expected out of shape (",
        count, ", ", x.size(1), "), got ", shape_of(out));
  check_alike("rms_norm", "x, weight and out", {&x, &weight, &out});
}

inline void check_rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& grad_x) {
  check(x.dim() == 2 && weight.dim() == 1 && weight.size(0) == x.size(1),
        "rms_norm_backward: expected x of shape (N, d) and weight (d,), got x ", shape_of(x), " and weight ",
        shape_of(weight));
  for (const Tensor* t : {&grad, &grad_x})
    check(shape_of(*t) == shape_of(x), "rms_norm_backward: expected grad and grad_x of shape ", shape_of(x), ", got ",
          shape_of(*t));
  check_alike("rms_norm_backward", "grad, x, weight and grad_x", {&grad, &x, &weight, &grad_x});
}

inline void check_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check(x.dim() == 3 && x.size(2) % 2 == 0, "rotary_: expected x of shape (N, H, hd) with hd even, got ", shape_of(x));
  for (const Tensor* t : {&cos, &sin})
    check(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == x.size(2),
          "rotary_: expected cos and sin of shape (", x.size(0), ", ", x.size(2), "), got ", shape_of(*t));
  check_alike("rotary_", "x, cos and sin", {&x, &cos, &sin});
}

inline void check_silu_mul(const Tensor& gate, const Tensor& up) {
  check(shape_of(gate) == shape_of(up), "silu_mul_: expected up of shape ", shape_of(gate), " to match gate, got ",
        shape_of(up));
  check_alike("silu_mul_", "gate and up", {&gate, &up});
}

inline void check_silu_mul_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, const Tensor& grad_gate,
                                    const Tensor& grad_up) {
  const char* names = "grad, gate, up, grad_gate and grad_up";
  for (const Tensor* t : {&gate, &up, &grad_gate, &grad_up})
    check(shape_of(*t) == shape_of(grad), "silu_mul_backward: expected ", names, " of one shape, got ", shape_of(grad),
          " and ", shape_of(*t));
  check_alike("silu_mul_backward", names, {&grad, &gate, &up, &grad_gate, &grad_up});
}

inline void check_window_restore(const Tensor& h, const Tensor& out, const Tensor& base, const Tensor& source,
                                 const Tensor& result) {
  check_row_numbers("window_restore", "base", base);
  check_row_numbers("window_restore", "source", source);
  check(h.dim() == 2 && out.dim() == 2 && result.dim() == 2 && out.size(1) == h.size(1) &&
            result.size(1) == h.size(1) && base.size(0) == result.size(0) && source.size(0) == result.size(0),
        "window_restore: expected h (N, d), out (M, d), base (P,), source (P,), result (P, d), got h ", shape_of(h),
        ", out ", shape_of(out), ", base ", shape_of(base), ", source ", shape_of(source), ", result ",
        shape_of(result));
  check_alike("window_restore", "h, out and result", {&h, &out, &result});
}

inline void check_token_logprob(const Tensor& x, const Tensor& unembed, const std::optional<Tensor>& bias,
                                const Tensor& target, double softcap, const Tensor& logprob, const Tensor& total) {
  check(x.dim() == 2 && unembed.dim() == 2 && unembed.size(1) == x.size(1) && x.size(1) > 0 && unembed.size(0) > 0,
        "token_logprob: expected x (R, d) and unembed (V, d), got x ", shape_of(x), " and unembed ",
        shape_of(unembed));
  check(is_bfloat16(x) && is_bfloat16(unembed) && x.is_contiguous() && x.is_cpu() && unembed.is_cpu(),
        "token_logprob: expected x and unembed to be bfloat16 on the CPU, x contiguous");
  if (bias)
    check(bias->dim() == 1 && bias->size(0) == unembed.size(0) && is_bfloat16(*bias) && bias->is_contiguous() &&
              bias->is_cpu(),
          "token_logprob: expected bias to be contiguous bfloat16 of shape (", unembed.size(0),
          ",) on the CPU, got shape ", shape_of(*bias));
  check_row_numbers("token_logprob", "target", target);
  check(softcap >= 0, "token_logprob: expected softcap to be positive, or 0 for none, got ", softcap);
  check(target.size(0) == x.size(0), "token_logprob: expected target of shape (", x.size(0), ",), got ",
        shape_of(target));
  for (const Tensor* t : {&logprob, &total})
    check(t->dim() == 1 && t->size(0) == x.size(0) && is_float32(*t) && t->is_contiguous() && t->is_cpu(),
          "token_logprob: expected logprob and total to be contiguous float32 of shape (", x.size(0),
          ",) on the CPU, got shape ", shape_of(*t));
}

inline void check_token_logprob_backward(const Tensor& grad, const Tensor& total, const Tensor& x,
                                         const Tensor& unembed, const std::optional<Tensor>& bias,
                                         const Tensor& target, double softcap, const Tensor& grad_x) {
  check_token_logprob(x, unembed, bias, target, softcap, grad, total);
  check(shape_of(grad_x) == shape_of(x) && is_float32(grad_x) && grad_x.is_contiguous() && grad_x.is_cpu(),
        "token_logprob_backward: expected grad_x to be contiguous float32 of shape ", shape_of(x), ", got shape ",
        shape_of(grad_x));
}

inline void check_rank_one_add(const Tensor& y, const Tensor& x, const Tensor& edit, const Tensor& key,
                               const Tensor& value) {
  check(y.dim() == 2 && x.dim() == 2 && edit.dim() == 1 && key.dim() == 3 && value.dim() == 3 &&
            x.size(0) == y.size(0) && edit.size(0) == y.size(0) && key.size(2) == x.size(1) &&
            value.size(0) == key.size(0) && value.size(1) == key.size(1) && value.size(2) == y.size(1),
        "rank_one_add_: expected y (N, d), x (N, m), edit (N,), key (E, w, m), value (E, w, d), got y ", shape_of(y),
        ", x ", shape_of(x), ", edit ", shape_of(edit), ", key ", shape_of(key), ", value ", shape_of(value));
  check(x.scalar_type() == y.scalar_type() && (is_float32(y) || is_bfloat16(y)),
        "rank_one_add_: expected y and x to be both float32 or both bfloat16");
  check(edit.scalar_type() == ScalarType::Long, "rank_one_add_: expected edit to be int64");
  check(is_float32(key) && is_float32(value), "rank_one_add_: expected key and value to be float32");
  check(edit.is_contiguous() && key.is_contiguous() && value.is_contiguous(),
        "rank_one_add_: expected edit, key and value to be contiguous");
  check(rows_without_gaps(y), "rank_one_add_: expected y with rows without gaps, got strides (", y.stride(0), ", ",
        y.stride(1), ")");
  check(y.stride(0) >= y.size(1) || y.size(0) <= 1, "rank_one_add_: expected y with rows that share no element, got ",
        "strides (", y.stride(0), ", ", y.stride(1), ")");
  check(rows_without_gaps(x), "rank_one_add_: expected x with rows without gaps, got strides (", x.stride(0), ", ",
        x.stride(1), ")");
}

inline void check_adam_linf(const Tensor& delta, const Tensor& m, const Tensor& v, const Tensor& g, const Tensor& k,
                            const Tensor& begin, const std::optional<Tensor>& active, int64_t step, double limit) {
  check(delta.dim() == 3, "adam_linf_: expected delta of shape (P, d, n), got ", shape_of(delta));
  for (const Tensor* t : {&delta, &m, &v})
    check(shape_of(*t) == shape_of(delta) && is_float32(*t) && t->is_contiguous() && t->is_cpu(),
          "adam_linf_: expected delta, m and v to be contiguous float32 of one shape, on the CPU");
  check(g.dim() == 2 && k.dim() == 2 && g.size(0) == k.size(0) && g.size(1) == delta.size(1) &&
            k.size(1) == delta.size(2),
        "adam_linf_: expected g of shape (R, ", delta.size(1), ") and k (R, ", delta.size(2),
        ") to match delta, got g ", shape_of(g), " and k ", shape_of(k));
  for (const Tensor* t : {&g, &k})
    check((is_float32(*t) || is_bfloat16(*t)) && rows_without_gaps(*t) && t->is_cpu(),
          "adam_linf_: expected g and k to be float32 or bfloat16 with rows without gaps, on the CPU");
  check_row_numbers("adam_linf_", "begin", begin);
  check(begin.size(0) == delta.size(0) + 1, "adam_linf_: expected begin of shape (", delta.size(0) + 1, ",), got ",
        shape_of(begin));
  if (active)
    check(active->dim() == 1 && active->size(0) == delta.size(0) && active->scalar_type() == ScalarType::Bool &&
              active->is_contiguous() && active->is_cpu(),
          "adam_linf_: expected active to be contiguous bool of shape (", delta.size(0), ",) on the CPU, got shape ",
          shape_of(*active));
  check(step >= 1, "adam_linf_: expected step to be 1 or more, got ", step);
  check(limit > 0, "adam_linf_: expected limit to be positive, infinite for none, got ", limit);
}

constexpr int64_t kBitSumWords = 4096;  // of a sum

inline void check_bit_sums(const Tensor& words, const Tensor& factors, const Tensor& sums) {
  const ScalarType type = words.scalar_type();
  check(words.dim() == 1 && (type == ScalarType::Char || type == ScalarType::Short || type == ScalarType::Int) &&
            words.is_contiguous() && words.is_cpu(),
        "bit_sums: expected words to be contiguous int8, int16 or int32 of shape (n,) on the CPU, got shape ",
        shape_of(words));
  check_row_numbers("bit_sums", "factors", factors);
  check(factors.size(0) == kBitSumWords, "bit_sums: expected factors of shape (", kBitSumWords, ",), got ",
        shape_of(factors));
  check_row_numbers("bit_sums", "sums", sums);
  check(sums.size(0) == words.size(0) / kBitSumWords + 1, "bit_sums: expected sums of shape (",
        words.size(0) / kBitSumWords + 1, ",) to match words, got ", shape_of(sums));
}

}  // namespace fasttrace
