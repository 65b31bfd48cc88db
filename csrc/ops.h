// Every kernel of the extension, by device: what library.cpp and library_cuda.cpp register.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace fasttrace {

using torch::stable::Tensor;

// C (m, m) float32 or float64 += Kᵀ K for K (n, m) float32 or bfloat16.
void second_moment_cpu(Tensor C, const Tensor K);
void second_moment_cuda(Tensor C, const Tensor K);

// W (a, b) float32 or bfloat16 += alpha · u vᵀ for u (a,), v (b,), each float32 or bfloat16.
void rank_one_cpu(Tensor W, const Tensor u, const Tensor v, double alpha);
void rank_one_cuda(Tensor W, const Tensor u, const Tensor v, double alpha);

// Causal attention of sequences of rows (table (S, 8) int64) of q (Nq, H, hd) over k, v (N, Hkv, hd) into
// out (Nq, H · hd); float32 or bfloat16. window: tokens a query sees, 0 for all.
void prefix_attention_cpu(const Tensor q, const Tensor k, const Tensor v, const Tensor table, double scale,
                          int64_t window, Tensor out);

}  // namespace fasttrace
