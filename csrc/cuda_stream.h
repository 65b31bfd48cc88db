// What every CUDA kernel here needs from the host side: the stream in use, and a launch's error as a sentence.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"

namespace fasttrace {

inline cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  const auto failed = aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  check(!failed, "torch has no CUDA stream for device ", t.get_device_index());
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, op, ": the CUDA kernel did not start (", cudaGetErrorString(error), ")");
}

inline void check_same_cuda(const char* op, const char* names, const Tensor& a, const Tensor& b) {
  check(a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index(), op, ": ", names,
        " must be on one CUDA device");
}

}  // namespace fasttrace
