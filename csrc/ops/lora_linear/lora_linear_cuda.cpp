// lora_linear on CUDA: tensors -> LoraLinearPackParams, and the choice of plan. The multiplications are the library's.

#include "../../common/check.h"
#include "../../common/cuda_device.h"
#include "../../common/kernel_switches.h"
#include "lora_linear_kernel.h"
#include "lora_linear_library.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("lora_linear");

CudaProbe probe(&probe_lora_linear_pack);

// The same parameters without host pointers, as a kernel can take them.
LoraLinearPackParams make_device_params(const LoraLinearPackRowsParams& rows) {
  LoraLinearPackParams p{};
  p.dtype = rows.dtype;
  p.rows = rows.rows;
  p.in_features = rows.in_features;
  p.rank = static_cast<int>(rows.rank);
  p.padded_rank = static_cast<int>(rows.padded_rank);
  p.x = rows.x;
  p.x_stride = rows.x_stride;
  p.out = rows.out;
  p.out_stride = rows.out_stride;
  p.scale = rows.scale;
  p.scale_count = rows.scale_count;
  p.rows_per_scale = rows.rows_per_scale;
  p.adapters = static_cast<int>(rows.adapter_count);
  for (int64_t a = 0; a < rows.adapter_count; ++a) {
    p.column_end[a] = static_cast<int>(rows.adapters[a].first + rows.adapters[a].rank);
  }
  return p;
}

void pack_rows(const LoraLinearPackRowsParams& rows, const Tensor& x) {
  const LoraLinearPackParams p = make_device_params(rows);
  const LoraLinearPackConfig config = choose_lora_linear_pack_config(
      static_cast<int64_t>(x.element_size()), p.in_features, reinterpret_cast<uint64_t>(p.x), p.x_stride,
      reinterpret_cast<uint64_t>(p.out), p.out_stride);
  check_cuda(launch_lora_linear_pack(p, config, current_cuda_stream(x)), "lora_linear");
}

Tensor lora_linear_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<Tensor>& downs, const std::vector<Tensor>& ups, const Tensor& scale,
                        const std::optional<Tensor>& block) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  LoraLinearArguments a = make_lora_linear_arguments(x, weight, bias, downs, ups, scale, block);
  const auto adapters = static_cast<int64_t>(downs.size());
  const LoraLinearPlan plan = choose_lora_linear_cuda_plan(dtype_of(x), adapters, block.has_value()).plan;
  if (!kernels_on.on() || plan == LoraLinearPlan::kPortable || probe.find_problem(x.get_device_index()) != nullptr) {
    return lora_linear_portable(a);
  }
  flatten_lora_linear_arguments(a);
  const auto pack = [&](const LoraLinearPackRowsParams& p) { pack_rows(p, a.x); };
  Tensor y;
  if (a.rank == 0 || a.rows == 0 || weight.size(0) == 0) {
    y = linear(a.x, weight, bias);
  } else if (plan == LoraLinearPlan::kBlock) {
    y = lora_linear_with_block(a, pack);
  } else {
    y = lora_linear_with_library(a, pack);
  }
  return unflatten_lora_linear_result(a, y);
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CUDA, m) { m.impl("lora_linear", TORCH_BOX(&lora_linear_cuda)); }

}  // namespace
}  // namespace refiners

// Why the kernel does not run on a device, or null: for python/refiners/ops/library.py, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_find_lora_linear_cuda_problem(int device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  return refiners::probe.find_problem(device);
}
