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

}  // namespace fasttrace
