// Argument checks: one sentence each, naming the op, the argument, what it is and what was wanted.
#pragma once

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace fasttrace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws a sentence made of its arguments; without file and line, since a user reads it.
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
        "second_moment_: C has shape ", shape_of(C), ", a square matrix (m, m) was wanted");
  check(is_float32(C) || is_float64(C), "second_moment_: C must be float32 or float64");
  check(C.is_contiguous(), "second_moment_: C of shape ", shape_of(C), " is not contiguous, and must be");
  check(K.dim() == 2 && K.size(1) == C.size(0), "second_moment_: K has shape ", shape_of(K), ", (n, ",
        C.size(0), ") was wanted to match C");
  check(is_float32(K) || is_bfloat16(K), "second_moment_: K must be float32 or bfloat16");
}

inline void check_rank_one(const Tensor& W, const Tensor& u, const Tensor& v) {
  check(W.dim() == 2, "rank_one_: W has shape ", shape_of(W), ", a matrix (a, b) was wanted");
  check(is_float32(W) || is_bfloat16(W), "rank_one_: W must be float32 or bfloat16");
  check(u.dim() == 1 && u.size(0) == W.size(0), "rank_one_: u has shape ", shape_of(u), ", (", W.size(0),
        ",) was wanted to match the rows of W");
  check(v.dim() == 1 && v.size(0) == W.size(1), "rank_one_: v has shape ", shape_of(v), ", (", W.size(1),
        ",) was wanted to match the columns of W");
  check(is_float32(u) || is_bfloat16(u), "rank_one_: u must be float32 or bfloat16");
  check(is_float32(v) || is_bfloat16(v), "rank_one_: v must be float32 or bfloat16");
  // An axis of extent one never steps, so its stride says nothing about the layout.
  const bool rows = W.stride(1) == 1 || W.size(1) <= 1, columns = W.stride(0) == 1 || W.size(0) <= 1;
  const bool apart = (rows && (W.size(0) <= 1 || W.stride(0) >= W.size(1))) ||
                     (columns && (W.size(1) <= 1 || W.stride(1) >= W.size(0)));
  check(apart || W.size(0) == 0 || W.size(1) == 0, "rank_one_: W has strides (", W.stride(0), ", ", W.stride(1),
        "), one of 1 and the other not less than its row were wanted");
}

inline void check_prefix_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& table,
                                   double softcap, const std::optional<Tensor>& alibi, const Tensor& out) {
  check(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && k.size(2) == q.size(2) && k.size(1) > 0 &&
            q.size(1) % k.size(1) == 0 && shape_of(k) == shape_of(v),
        "prefix_attention: q ", shape_of(q), ", k ", shape_of(k), ", v ", shape_of(v),
        " do not fit, (Nq, H, hd) and twice (N, Hkv, hd) with H a multiple of Hkv were wanted");
  check(out.dim() == 2 && out.size(0) == q.size(0) && out.size(1) == q.size(1) * q.size(2),
        "prefix_attention: out has shape ", shape_of(out), ", (Nq, H * hd) was wanted");
  check(table.dim() == 2 && table.size(1) == 8 && table.scalar_type() == ScalarType::Long,
        "prefix_attention: table has shape ", shape_of(table), ", (S, 8) int64 was wanted");
  for (const Tensor* t : {&q, &k, &v, &out}) {
    check(t->scalar_type() == q.scalar_type() && (is_float32(*t) || is_bfloat16(*t)),
          "prefix_attention: q, k, v and out must all be float32 or all bfloat16");
    check(t->is_contiguous() && t->is_cpu(), "prefix_attention: q, k, v and out must be contiguous, on the CPU");
  }
  check(table.is_contiguous() && table.is_cpu(), "prefix_attention: table must be contiguous, on the CPU");
  check(softcap >= 0, "prefix_attention: softcap is ", softcap, ", a positive number, or 0 for none, was wanted");
  if (alibi)
    check(alibi->dim() == 1 && alibi->size(0) == q.size(1) && is_float32(*alibi) && alibi->is_contiguous() &&
              alibi->is_cpu(),
          "prefix_attention: alibi has shape ", shape_of(*alibi), ", contiguous float32 (", q.size(1),
          ",) on the CPU was wanted");
}

// One dtype, float32 or bfloat16, every element in order, on the CPU: what each op of rows.cpp takes.
inline void check_alike(const char* op, const char* names, std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  for (const Tensor* t : tensors) {
    check(t->scalar_type() == first.scalar_type() && (is_float32(*t) || is_bfloat16(*t)), op, ": ", names,
          " must all be float32 or all bfloat16");
    check(t->is_contiguous() && t->is_cpu(), op, ": ", names, " must be contiguous, on the CPU");
  }
}

inline void check_row_numbers(const char* op, const char* name, const Tensor& rows) {
  check(rows.dim() == 1 && rows.scalar_type() == ScalarType::Long && rows.is_contiguous() && rows.is_cpu(), op, ": ",
        name, " has shape ", shape_of(rows), ", contiguous int64 (n,) on the CPU was wanted");
}

inline void check_rms_norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& rows,
                           const Tensor& out) {
  check(x.dim() == 2 && weight.dim() == 1 && weight.size(0) == x.size(1), "rms_norm: x has shape ", shape_of(x),
        " and weight ", shape_of(weight), ", (N, d) and (d,) were wanted");
  if (rows) check_row_numbers("rms_norm", "rows", *rows);
  const int64_t wanted = rows ? rows->size(0) : x.size(0);
  check(out.dim() == 2 && out.size(0) == wanted && out.size(1) == x.size(1), "rms_norm: out has shape ",
        shape_of(out), ", (", wanted, ", ", x.size(1), ") was wanted");
  check_alike("rms_norm", "x, weight and out", {&x, &weight, &out});
}

inline void check_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check(x.dim() == 3 && x.size(2) % 2 == 0, "rotary_: x has shape ", shape_of(x), ", (N, H, hd), hd even, was wanted");
  for (const Tensor* t : {&cos, &sin})
    check(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == x.size(2), "rotary_: cos or sin has shape ",
          shape_of(*t), ", (", x.size(0), ", ", x.size(2), ") was wanted");
  check_alike("rotary_", "x, cos and sin", {&x, &cos, &sin});
}

inline void check_silu_mul(const Tensor& gate, const Tensor& up) {
  check(shape_of(gate) == shape_of(up), "silu_mul_: up has shape ", shape_of(up), ", ", shape_of(gate),
        " was wanted to match gate");
  check_alike("silu_mul_", "gate and up", {&gate, &up});
}

inline void check_window_restore(const Tensor& h, const Tensor& out, const Tensor& base, const Tensor& source,
                                 const Tensor& result) {
  check_row_numbers("window_restore", "base", base);
  check_row_numbers("window_restore", "source", source);
  check(h.dim() == 2 && out.dim() == 2 && result.dim() == 2 && out.size(1) == h.size(1) &&
            result.size(1) == h.size(1) && base.size(0) == result.size(0) && source.size(0) == result.size(0),
        "window_restore: h ", shape_of(h), ", out ", shape_of(out), ", base ", shape_of(base), ", source ",
        shape_of(source), ", result ", shape_of(result), " do not fit, (N, d), (M, d), (P,), (P,), (P, d) were wanted");
  check_alike("window_restore", "h, out and result", {&h, &out, &result});
}

inline void check_rank_one_add(const Tensor& y, const Tensor& x, const Tensor& edit, const Tensor& key,
                               const Tensor& value) {
  check(y.dim() == 2 && x.dim() == 2 && edit.dim() == 1 && key.dim() == 3 && value.dim() == 3 &&
            x.size(0) == y.size(0) && edit.size(0) == y.size(0) && key.size(2) == x.size(1) &&
            value.size(0) == key.size(0) && value.size(1) == key.size(1) && value.size(2) == y.size(1),
        "rank_one_add_: y ", shape_of(y), ", x ", shape_of(x), ", edit ", shape_of(edit), ", key ", shape_of(key),
        ", value ", shape_of(value), " do not fit, (N, d), (N, m), (N,), (E, w, m), (E, w, d) were wanted");
  check(x.scalar_type() == y.scalar_type() && (is_float32(y) || is_bfloat16(y)),
        "rank_one_add_: y and x must both be float32 or both bfloat16");
  check(edit.scalar_type() == ScalarType::Long, "rank_one_add_: edit must be int64");
  check(is_float32(key) && is_float32(value), "rank_one_add_: key and value must be float32");
  check(edit.is_contiguous() && key.is_contiguous() && value.is_contiguous(),
        "rank_one_add_: edit, key and value must be contiguous");
  check(rows_without_gaps(y), "rank_one_add_: y has strides (", y.stride(0), ", ", y.stride(1),
        "), rows without gaps were wanted");
  check(y.stride(0) >= y.size(1) || y.size(0) <= 1, "rank_one_add_: y has strides (", y.stride(0), ", ", y.stride(1),
        "), rows apart were wanted");
  check(rows_without_gaps(x), "rank_one_add_: x has strides (", x.stride(0), ", ", x.stride(1),
        "), rows without gaps were wanted");
}

inline void check_adam_linf(const Tensor& delta, const Tensor& m, const Tensor& v, const Tensor& g, const Tensor& k,
                            const Tensor& begin, const std::optional<Tensor>& active, int64_t step, double limit) {
  check(delta.dim() == 3, "adam_linf_: delta has shape ", shape_of(delta), ", (P, d, n) was wanted");
  for (const Tensor* t : {&delta, &m, &v})
    check(shape_of(*t) == shape_of(delta) && is_float32(*t) && t->is_contiguous() && t->is_cpu(),
          "adam_linf_: delta, m and v must be contiguous float32 of one shape, on the CPU");
  check(g.dim() == 2 && k.dim() == 2 && g.size(0) == k.size(0) && g.size(1) == delta.size(1) &&
            k.size(1) == delta.size(2),
        "adam_linf_: g has shape ", shape_of(g), " and k ", shape_of(k), ", (R, ", delta.size(1), ") and (R, ",
        delta.size(2), ") were wanted to match delta");
  for (const Tensor* t : {&g, &k})
    check((is_float32(*t) || is_bfloat16(*t)) && rows_without_gaps(*t) && t->is_cpu(),
          "adam_linf_: g and k must be float32 or bfloat16, rows without gaps, on the CPU");
  check_row_numbers("adam_linf_", "begin", begin);
  check(begin.size(0) == delta.size(0) + 1, "adam_linf_: begin has shape ", shape_of(begin), ", (",
        delta.size(0) + 1, ",) was wanted");
  if (active)
    check(active->dim() == 1 && active->size(0) == delta.size(0) && active->scalar_type() == ScalarType::Bool &&
              active->is_contiguous() && active->is_cpu(),
          "adam_linf_: active has shape ", shape_of(*active), ", contiguous bool (", delta.size(0),
          ",) on the CPU was wanted");
  check(step >= 1, "adam_linf_: step is ", step, ", 1 or more was wanted");
  check(limit > 0, "adam_linf_: limit is ", limit, ", a positive number, infinite for none, was wanted");
}

}  // namespace fasttrace
