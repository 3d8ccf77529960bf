#include "cuda_timer.h"

#include <stdexcept>
#include <string>

namespace refiners::bench {

void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

CudaStopwatch::CudaStopwatch(cudaStream_t stream) : stream_(stream) {
  check_cuda(cudaEventCreate(&start_), "cudaEventCreate");
  check_cuda(cudaEventCreate(&stop_), "cudaEventCreate");
}

CudaStopwatch::~CudaStopwatch() {
  cudaEventDestroy(start_);
  cudaEventDestroy(stop_);
}

Elapsed CudaStopwatch::time(const std::function<void()>& work) {
  check_cuda(cudaEventRecord(start_, stream_), "cudaEventRecord");
  const Timer host(CpuClock::thread);
  work();
  const double cpu = host.elapsed().cpu;
  check_cuda(cudaEventRecord(stop_, stream_), "cudaEventRecord");
  check_cuda(cudaEventSynchronize(stop_), "cudaEventSynchronize");
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
  return {1e-3 * static_cast<double>(milliseconds), cpu};
}

}  // namespace refiners::bench
