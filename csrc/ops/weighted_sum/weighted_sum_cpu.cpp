// weighted_sum on the CPU: tensors -> WeightedSumParams, and elements for the threads.

#include "../../common/cpu_plan.h"
#include "../../common/kernel_switches.h"
#include "weighted_sum_arguments.h"
#include "weighted_sum_cpu_kernel.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("weighted_sum");

constexpr int64_t kGrain = int64_t{1} << 15;  // elements for which another thread is worth waking

CpuPlan choose_plan(Dtype dtype) {
  return choose_cpu_plan(kernels_on.on() ? cpu_isa() : CpuIsa::kPortable, dtype, "one pass over memory");
}

Tensor weighted_sum_cpu(const std::vector<Tensor>& tensors, const std::vector<double>& factors,
                        const OptionalDtype& dtype) {
  check_weighted_sum(tensors, factors);
  if (!choose_plan(dtype_of(tensors[0])).kernel || !kernels_take_weighted_sum(tensors, factors, dtype)) {
    return portable_weighted_sum(tensors, factors, dtype);
  }
  const WeightedSumArguments a = make_weighted_sum_arguments(tensors, factors, dtype);
  const WeightedSumCpuKernels& kernels = *weighted_sum_cpu_kernels(cpu_isa());
  const auto compute = [&](int64_t begin, int64_t end) { kernels.compute(a.params, begin, end); };
  if (a.params.count > 0) torch::stable::parallel_for(0, a.params.count, kGrain, compute);
  return a.y;
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("weighted_sum", TORCH_BOX(&weighted_sum_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_explain_weighted_sum(const char* dtype) {
  return refiners::describe(refiners::choose_plan(refiners::dtype_named(dtype)));
}
