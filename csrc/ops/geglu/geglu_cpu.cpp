// geglu on the CPU: tensors -> GegluParams, and rows for the threads.

#include <algorithm>

#include "../../common/cpu_plan.h"
#include "../../common/kernel_switches.h"
#include "../../common/rows.h"
#include "geglu_cpu_kernel.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("geglu");

CpuPlan choose_plan(Dtype dtype) {
  return choose_cpu_plan(kernels_on.on() ? cpu_isa() : CpuIsa::kPortable, dtype, "one pass over memory");
}

Tensor geglu_cpu(const Tensor& x, bool tanh) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) % 2 == 0, "geglu: x must have an even number of features");
  if (!choose_plan(dtype_of(x)).kernel) return call<Tensor>("refiners::_geglu_portable", "", x, tanh);
  const Rows rows = rows_of(x);
  const int64_t features = rows.features / 2;
  const Tensor y = torch::stable::new_empty(x, rows.shape(features));
  if (rows.count * features == 0) return y;
  const Tensor in_rows = flatten_rows(x, rows);
  const GegluParams p{dtype_of(x), features, in_rows.const_data_ptr(), in_rows.stride(0), y.mutable_data_ptr(),
                      features,    tanh};
  const GegluCpuKernels& kernels = *geglu_cpu_kernels(cpu_isa());
  const int64_t grain = (int64_t{1} << 13) / features + 1;
  torch::stable::parallel_for(0, rows.count, grain,
                              [&](int64_t begin, int64_t end) { kernels.compute(p, begin, end); });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("geglu", TORCH_BOX(&geglu_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_explain_geglu(const char* dtype) {
  return refiners::describe(refiners::choose_plan(refiners::dtype_named(dtype)));
}
