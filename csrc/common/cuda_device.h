// What the CUDA bindings of operators ask of a device: its stream, and whether it can run a kernel.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <atomic>

#include "stable_abi.h"

namespace refiners {

inline cudaStream_t current_cuda_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Asks each device once whether it can run the kernels of an operator. At namespace scope of its bindings.
class CudaProbe {
 public:
  // `probe` asks the current device.
  constexpr explicit CudaProbe(cudaError_t (*probe)()) : probe_(probe) {}

  // Why the kernels do not run on a device, which is the current one; null if they do.
  const char* find_problem(int device) {
    if (device < 0 || device >= kMaxDevices) return "there are more than 64 devices";
    if (known_[device] == 0) known_[device] = static_cast<int>(probe_()) + 1;
    const auto status = static_cast<cudaError_t>(known_[device].load() - 1);
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
  }

 private:
  static constexpr int kMaxDevices = 64;
  cudaError_t (*probe_)();
  std::array<std::atomic<int>, kMaxDevices> known_{};  // status + 1, so that 0 is unknown
};

}  // namespace refiners
