// fasttrace._C: every schema of the extension, and the CPU registrations.
#include "module.h"

#include <torch/csrc/stable/library.h>

#include "ops.h"

// A fragment, because the ops written in Python define theirs in the same namespace.
STABLE_TORCH_LIBRARY_FRAGMENT(fasttrace, library) {
  library.def("second_moment_(Tensor(a!) C, Tensor K) -> ()");
  library.def("rank_one_(Tensor(a!) W, Tensor u, Tensor v, float alpha) -> ()");
  library.def(
      "prefix_attention_(Tensor q, Tensor k, Tensor v, Tensor table, float scale, int window, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fasttrace, CPU, library) {
  library.impl("second_moment_", TORCH_BOX(&fasttrace::second_moment_cpu));
  library.impl("rank_one_", TORCH_BOX(&fasttrace::rank_one_cpu));
  library.impl("prefix_attention_", TORCH_BOX(&fasttrace::prefix_attention_cpu));
}

FASTTRACE_MODULE(_C)
