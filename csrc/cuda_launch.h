// The host side of every CUDA kernel: the current stream, the launch, and its error as a sentence.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "device.cuh"

namespace fasttrace {

inline cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  const auto failed = aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  check(!failed, "torch has no CUDA stream for device ", t.get_device_index());
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();  // clears it, or torch's next op would report it as its own
  check(error == cudaSuccess, op, ": the CUDA kernel did not start (", cudaGetErrorString(error), ")");
}

// Starts a kernel as planned. CUDA grants more than 48 KiB of shared memory only on request.
template <class... Parameters, class... Arguments>
void start(const char* op, void (*kernel)(Parameters...), Launch plan, cudaStream_t stream, Arguments... arguments) {
  if (plan.shared > 48 * 1024)
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan.shared)));
  kernel<<<dim3(plan.across, plan.down), plan.threads, plan.shared, stream>>>(Parameters(arguments)...);
  check_cuda(op, cudaGetLastError());
}

inline void check_same_cuda(const char* op, const char* names, const Tensor& a, const Tensor& b) {
  check(a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index(), op, ": expected ", names,
        " to be on one CUDA device");
}

}  // namespace fasttrace
