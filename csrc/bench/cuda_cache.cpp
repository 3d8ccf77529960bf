#include "cuda_cache.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "cuda_timer.h"

namespace refiners::bench {
namespace {

constexpr int kRuns = 10;

std::size_t l2_bytes() {
  int device = 0;
  int bytes = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes);
}

struct CudaFree {
  void operator()(void* pointer) const { cudaFree(pointer); }
};

std::unique_ptr<void, CudaFree> allocate(std::size_t bytes) {
  void* pointer = nullptr;
  check_cuda(cudaMalloc(&pointer, bytes), "cudaMalloc");
  return std::unique_ptr<void, CudaFree>(pointer);
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string cuda_device_name(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

CudaCacheFlusher::CudaCacheFlusher(cudaStream_t stream)
    : stream_(stream), bytes_(2 * l2_bytes()), buffer_(allocate(bytes_).release()) {}

CudaCacheFlusher::~CudaCacheFlusher() { cudaFree(buffer_); }

void CudaCacheFlusher::flush() {
  check_cuda(cudaMemsetAsync(buffer_, ++value_ & 0xFF, bytes_, stream_), "cudaMemsetAsync");
}

double measure_cuda_copy_bandwidth(std::size_t bytes) {
  const auto source = allocate(bytes);
  const auto target = allocate(bytes);
  check_cuda(cudaMemset(source.get(), 1, bytes), "cudaMemset");
  CudaStopwatch stopwatch;
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < kRuns; ++run) {
    const auto copy = [&] {
      check_cuda(cudaMemcpyAsync(target.get(), source.get(), bytes, cudaMemcpyDeviceToDevice, nullptr), "cudaMemcpy");
    };
    best = std::min(best, stopwatch.time(copy).wall);
  }
  return 2 * static_cast<double>(bytes) / best;
}

}  // namespace refiners::bench
