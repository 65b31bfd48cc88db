// fasttrace._C: every schema of the extension, and the CPU registrations.
#include "module.h"

#include <torch/csrc/stable/library.h>

#include "ops.h"

// A fragment, because the ops written in Python define their schemas in the same namespace.
STABLE_TORCH_LIBRARY_FRAGMENT(fasttrace, library) {
  library.def("second_moment_(Tensor(a!) C, Tensor K) -> ()");
  library.def("rank_one_(Tensor(a!) W, Tensor u, Tensor v, float alpha) -> ()");
  library.def("rank_one_add_(Tensor(a!) y, Tensor x, Tensor edit, Tensor key, Tensor value) -> ()");
  library.def(
      "adam_linf_(Tensor(a!) delta, Tensor(b!) m, Tensor(c!) v, Tensor g, Tensor k, Tensor begin, Tensor? active, "
      "int step, float lr, float limit, float beta1, float beta2, float eps) -> ()");
  library.def("linear_(Tensor x, Tensor w, Tensor? bias, Tensor(a!) out) -> ()");
  library.def(
      "prefix_attention_(Tensor q, Tensor k, Tensor v, Tensor table, float scale, int window, float softcap, "
      "Tensor? alibi, Tensor? sinks, Tensor(a!) out) -> ()");
  library.def("rms_norm_(Tensor x, Tensor weight, float eps, Tensor? rows, Tensor(a!) out) -> ()");
  library.def("rms_norm_backward_(Tensor grad, Tensor x, Tensor weight, float eps, Tensor(a!) grad_x) -> ()");
  library.def("rotary_(Tensor(a!) x, Tensor cos, Tensor sin) -> ()");
  library.def("silu_mul_(Tensor(a!) gate, Tensor up) -> ()");
  library.def(
      "silu_mul_backward_(Tensor grad, Tensor gate, Tensor up, Tensor(a!) grad_gate, Tensor(b!) grad_up) -> ()");
  library.def("gelu_tanh_(Tensor(a!) x) -> ()");
  library.def("window_restore_(Tensor h, Tensor out, Tensor base, Tensor source, Tensor(a!) result) -> ()");
  library.def(
      "token_logprob_(Tensor x, Tensor unembed, Tensor? bias, Tensor target, float softcap, Tensor(a!) logprob, "
      "Tensor(b!) total) -> ()");
  library.def(
      "token_logprob_backward_(Tensor grad, Tensor total, Tensor x, Tensor unembed, Tensor? bias, Tensor target, "
      "float softcap, Tensor(a!) grad_x) -> ()");
  library.def("bit_sums_(Tensor words, Tensor factors, Tensor(a!) sums) -> ()");
  library.def("bfloat16_products() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fasttrace, CPU, library) {
  library.impl("second_moment_", TORCH_BOX(&fasttrace::second_moment_cpu));
  library.impl("rank_one_", TORCH_BOX(&fasttrace::rank_one_cpu));
  library.impl("rank_one_add_", TORCH_BOX(&fasttrace::rank_one_add_cpu));
  library.impl("adam_linf_", TORCH_BOX(&fasttrace::adam_linf_cpu));
  library.impl("linear_", TORCH_BOX(&fasttrace::linear_cpu));
  library.impl("prefix_attention_", TORCH_BOX(&fasttrace::prefix_attention_cpu));
  library.impl("rms_norm_", TORCH_BOX(&fasttrace::rms_norm_cpu));
  library.impl("rms_norm_backward_", TORCH_BOX(&fasttrace::rms_norm_backward_cpu));
  library.impl("rotary_", TORCH_BOX(&fasttrace::rotary_cpu));
  library.impl("silu_mul_", TORCH_BOX(&fasttrace::silu_mul_cpu));
  library.impl("silu_mul_backward_", TORCH_BOX(&fasttrace::silu_mul_backward_cpu));
  library.impl("gelu_tanh_", TORCH_BOX(&fasttrace::gelu_tanh_cpu));
  library.impl("window_restore_", TORCH_BOX(&fasttrace::window_restore_cpu));
  library.impl("token_logprob_", TORCH_BOX(&fasttrace::token_logprob_cpu));
  library.impl("token_logprob_backward_", TORCH_BOX(&fasttrace::token_logprob_backward_cpu));
  library.impl("bit_sums_", TORCH_BOX(&fasttrace::bit_sums_cpu));
}

// It takes no tensor, so no device chooses its kernel.
STABLE_TORCH_LIBRARY_IMPL(fasttrace, CompositeExplicitAutograd, library) {
  library.impl("bfloat16_products", TORCH_BOX(&fasttrace::bfloat16_products));
}

FASTTRACE_MODULE(_C)
