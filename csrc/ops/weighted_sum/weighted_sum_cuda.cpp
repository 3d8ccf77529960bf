// weighted_sum on CUDA: tensors -> WeightedSumParams, and a launch.

#include "../../common/check.h"
#include "../../common/cuda_device.h"
#include "../../common/kernel_switches.h"
#include "weighted_sum_arguments.h"
#include "weighted_sum_kernel.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("weighted_sum");
CudaProbe probe(&probe_weighted_sum);

Tensor weighted_sum_cuda(const std::vector<Tensor>& tensors, const std::vector<double>& factors,
                         const OptionalDtype& dtype) {
  check_weighted_sum(tensors, factors);
  const torch::stable::accelerator::DeviceGuard guard(tensors[0].get_device_index());
  if (!kernels_on.on() || !kernels_take_weighted_sum(tensors, factors, dtype) ||
      probe.find_problem(tensors[0].get_device_index()) != nullptr) {
    return portable_weighted_sum(tensors, factors, dtype);
  }
  const WeightedSumArguments a = make_weighted_sum_arguments(tensors, factors, dtype);
  check_cuda(launch_weighted_sum(a.params, current_cuda_stream(a.y)), "weighted_sum");
  return a.y;
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CUDA, m) { m.impl("weighted_sum", TORCH_BOX(&weighted_sum_cuda)); }

}  // namespace
}  // namespace refiners

// Why the kernel does not run on a device, or null: for python/refiners/ops/library.py, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_find_weighted_sum_cuda_problem(int device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  return refiners::probe.find_problem(device);
}
