// Every kernel of the extension, by device. library.cpp and library_cuda.cpp register them.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace fasttrace {

using torch::stable::Tensor;

// C (m, m) float32 or float64 += Kᵀ K for K (n, m) float32 or bfloat16.
void second_moment_cpu(Tensor C, const Tensor K);
void second_moment_cuda(Tensor C, const Tensor K);

// W (a, b) float32 or bfloat16 += alpha · u vᵀ for u (a,), v (b,), each float32 or bfloat16.
void rank_one_cpu(Tensor W, const Tensor u, const Tensor v, double alpha);
void rank_one_cuda(Tensor W, const Tensor u, const Tensor v, double alpha);

// y[r] += Σ_j value[e, j] · (key[e, j] · x[r]) with e = edit[r]; rows whose e is -1 do not change.
// y (N, d) and x (N, m) float32 or bfloat16, edit (N,) int64, key (E, w, m) and value (E, w, d) float32.
void rank_one_add_cpu(Tensor y, const Tensor x, const Tensor edit, const Tensor key, const Tensor value);
void rank_one_add_cuda(Tensor y, const Tensor x, const Tensor edit, const Tensor key, const Tensor value);

// out (m, n) = x (m, k) wᵀ + bias (n,), all float32, for w (n, k) with either its rows or its columns contiguous.
void linear_cpu(const Tensor x, const Tensor w, std::optional<Tensor> bias, Tensor out);

// Causal attention of the sequences in table (S, 8) int64: queries q (Nq, H, hd) over keys and values k, v (N, Hkv, hd)
// into out (Nq, H · hd), all float32 or all bfloat16. window: tokens a query sees, 0 for all. softcap: bound of the
// scores, 0 for none. alibi: (H,) float32, how much a score falls per token of distance.
void prefix_attention_cpu(const Tensor q, const Tensor k, const Tensor v, const Tensor table, double scale,
                          int64_t window, double softcap, std::optional<Tensor> alibi,
                          std::optional<Tensor> sinks, Tensor out);

// out (n, d) = weight (d,) · rounded(x · rsqrt(mean x² + eps)) for the rows of x (N, d) in rows (n,), or for all rows.
void rms_norm_cpu(const Tensor x, const Tensor weight, double eps, std::optional<Tensor> rows, Tensor out);

// grad_x (N, d), the gradient w.r.t. x, from grad (N, d), that of the norm of all rows.
void rms_norm_backward_cpu(const Tensor grad, const Tensor x, const Tensor weight, double eps, Tensor grad_x);

// Rotates x (N, H, hd) in place by cos and sin (N, hd), pairing dimension i with i + hd/2.
void rotary_cpu(Tensor x, const Tensor cos, const Tensor sin);

// gate = silu(gate) · up, both contiguous, of one shape and dtype.
void silu_mul_cpu(Tensor gate, const Tensor up);

// The gradients of silu(gate) · up with respect to both, from grad, the product's. All are contiguous, of one shape and
// dtype.
void silu_mul_backward_cpu(const Tensor grad, const Tensor gate, const Tensor up, Tensor grad_gate, Tensor grad_up);

// x = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), contiguous.
void gelu_tanh_cpu(Tensor x);

// result[i] = h[base[i]] + out[source[i]], where the row of a base or source of -1 is zero.
void window_restore_cpu(const Tensor h, const Tensor out, const Tensor base, const Tensor source, Tensor result);

// The fastest products of bfloat16 with float32 sums that this processor has: 0 none of its own, 1 AVX512_BF16, 2 AMX.
int64_t bfloat16_products();

// logprob[i] = a[i, t_i] − total[i] and total[i] = log Σ_v exp(a[i, v]) with a = cap(x Uᵀ + bias) and t = target (R,)
// int64, for x (R, d), U (V, d) and bias (V,) bfloat16, logprob and total (R,) float32. softcap: bound of a, 0: none.
void token_logprob_cpu(const Tensor x, const Tensor unembed, std::optional<Tensor> bias, const Tensor target,
                       double softcap, Tensor logprob, Tensor total);

// grad_x (R, d) float32 = ∂/∂x of Σ_i grad[i] logprob[i], with total as token_logprob returns it.
void token_logprob_backward_cpu(const Tensor grad, const Tensor total, const Tensor x, const Tensor unembed,
                                std::optional<Tensor> bias, const Tensor target, double softcap, Tensor grad_x);

// sums[i] = Σ_j factors[j] · words[4096 i + j] modulo 2^64, for words (n,) int8, int16 or int32, factors (4096,) int64
// and sums (n / 4096 + 1,) int64. The last sum is of the words left over, of which there may be none.
void bit_sums_cpu(const Tensor words, const Tensor factors, Tensor sums);

// Step `step` of Adam on delta (P, d, n) with moments m and v, then the clamp to ± limit (infinite for none). The
// gradient of item p is gᵀ k over rows begin[p] to begin[p + 1] of g (R, d) and k (R, n). active: (P,) bool, null: all.
void adam_linf_cpu(Tensor delta, Tensor m, Tensor v, const Tensor g, const Tensor k, const Tensor begin,
                   std::optional<Tensor> active, int64_t step, double lr, double limit, double beta1, double beta2,
                   double eps);

}  // namespace fasttrace
