// Time on a CUDA device, between two events on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include "timer.h"

namespace refiners::bench {

// Throws std::runtime_error naming `what` unless `status` is success.
void check_cuda(cudaError_t status, const char* what);

// `wall` is the time on the device, `cpu` what the host spent on launching: the wait for the end is not in it.
class CudaStopwatch : public Stopwatch {
 public:
  explicit CudaStopwatch(cudaStream_t stream = nullptr);
  ~CudaStopwatch() override;
  CudaStopwatch(const CudaStopwatch&) = delete;
  CudaStopwatch& operator=(const CudaStopwatch&) = delete;

  Elapsed time(const std::function<void()>& work) override;

 private:
  cudaStream_t stream_;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
};

}  // namespace refiners::bench
