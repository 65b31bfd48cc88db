// fasttrace._C_cuda: the CUDA registrations. They are separate so that fasttrace._C loads without CUDA.
#include "module.h"

#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(fasttrace, CUDA, library) {
  library.impl("second_moment_", TORCH_BOX(&fasttrace::second_moment_cuda));
  library.impl("rank_one_", TORCH_BOX(&fasttrace::rank_one_cuda));
  library.impl("rank_one_add_", TORCH_BOX(&fasttrace::rank_one_add_cuda));
}

FASTTRACE_MODULE(_C_cuda)
