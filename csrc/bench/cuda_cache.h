// The L2 cache of a CUDA device, and what its memory can do.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

namespace refiners::bench {

// 0 where there is no driver or no device.
int cuda_device_count();

std::string cuda_device_name(int device = 0);

// Overwrites twice the L2 cache, on the stream that the next call uses, so that the call finds nothing cached.
class CudaCacheFlusher {
 public:
  explicit CudaCacheFlusher(cudaStream_t stream = nullptr);
  ~CudaCacheFlusher();
  CudaCacheFlusher(const CudaCacheFlusher&) = delete;
  CudaCacheFlusher& operator=(const CudaCacheFlusher&) = delete;

  void flush();
  std::size_t bytes() const { return bytes_; }

 private:
  cudaStream_t stream_;
  std::size_t bytes_;
  void* buffer_ = nullptr;
  int value_ = 0;
};

// Bytes per second that a copy from device memory to device memory reads and writes, best of several; `bytes` each way.
double measure_cuda_copy_bandwidth(std::size_t bytes = std::size_t{1} << 30);

}  // namespace refiners::bench
