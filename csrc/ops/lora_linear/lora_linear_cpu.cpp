// lora_linear on the CPU: tensors -> LoraLinearParams, and the choice of plan and instruction set.

#include <algorithm>
#include <atomic>
#include <string>

#include "../../common/kernel_switches.h"
#include "../../common/scratch.h"
#include "lora_linear_library.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("lora_linear");
std::atomic<int> forced_plan{-1};

// Of items that take `work` multiplications each, how many are worth another thread.
constexpr int64_t thread_grain(int64_t work) { return (1 << 17) / std::max<int64_t>(work, 1) + 1; }

LoraLinearParams make_params(const LoraLinearArguments& a, const Tensor& y) {
  LoraLinearParams p{};
  p.dtype = dtype_of(a.x);
  p.rows = a.rows;
  p.in_features = a.x.size(1);
  p.out_features = y.size(1);
  p.rank = a.rank;
  p.x = a.x.const_data_ptr();
  p.x_stride = a.x.stride(0);
  p.y = y.mutable_data_ptr();
  p.y_stride = y.stride(0);
  p.adapters = a.adapters.data();
  p.adapter_count = static_cast<int64_t>(a.adapters.size());
  p.scale = a.scale.const_data_ptr<float>();
  p.scale_count = a.scale_count;
  p.rows_per_scale = a.rows_per_scale;
  return p;
}

// The plan for these arguments; a forced one replaces it where it can run at all.
LoraLinearChoice choose_plan(Dtype dtype, bool has_block) {
  const CpuIsa isa = kernels_on.on() ? cpu_isa() : CpuIsa::kPortable;
  const LoraLinearChoice choice = choose_lora_linear_cpu_plan(isa, cpu_features(), dtype, has_block);
  const int forced = forced_plan.load(std::memory_order_relaxed);
  if (forced < 0 || choice.plan == LoraLinearPlan::kPortable) return choice;
  const auto plan = static_cast<LoraLinearPlan>(forced);
  return {plan == LoraLinearPlan::kBlock && !has_block ? LoraLinearPlan::kLibrary : plan, "chosen by the program"};
}

// Whether the kernels for a few rows can read the updates as they lie.
bool is_for_few_rows(const LoraLinearParams& p) {
  return p.rows <= kLoraLinearFewRows && std::all_of(p.adapters, p.adapters + p.adapter_count, [&](const auto& a) {
           return (a.down_column_stride == 1 || p.in_features == 1) && (a.up_column_stride == 1 || a.rank == 1);
         });
}

// y += scale · (x·Aᵀ)·Bᵀ for a few rows.
void add_update_to_few_rows(const LoraLinearParams& p, const LoraLinearCpuKernels& kernels) {
  const Scratch d = make_scratch(kernels.few_rows_size(p));
  torch::stable::parallel_for(0, p.rank, thread_grain(p.rows * p.in_features),
                              [&](int64_t begin, int64_t end) { kernels.project_few_rows(p, begin, end, d.get()); });
  torch::stable::parallel_for(0, p.out_features, thread_grain(p.rows * p.rank),
                              [&](int64_t begin, int64_t end) { kernels.update_few_rows(p, begin, end, d.get()); });
}

// y += scale · (x·Aᵀ)·Bᵀ by own kernels; threads share the packing, then the rows.
void add_update(const LoraLinearArguments& a, const Tensor& y, const LoraLinearCpuKernels& kernels) {
  LoraLinearParams p = make_params(a, y);
  if (is_for_few_rows(p)) return add_update_to_few_rows(p, kernels);
  const int64_t down_size = kernels.packed_down_size(p);
  const Scratch packed = make_scratch(down_size + kernels.packed_up_size(p));
  p.packed_down = packed.get();
  p.packed_up = p.packed_down + down_size;

  const int64_t groups = (p.out_features + kPackGrain - 1) / kPackGrain;
  const int64_t pack_grain = thread_grain(8 * p.rank);
  torch::stable::parallel_for(0, p.in_features, pack_grain,
                              [&](int64_t begin, int64_t end) { kernels.pack_down(p, begin, end); });
  torch::stable::parallel_for(0, groups, pack_grain / kPackGrain + 1, [&](int64_t begin, int64_t end) {
    kernels.pack_up(p, begin * kPackGrain, std::min(end * kPackGrain, p.out_features));
  });
  const int64_t row_grain = thread_grain(p.rank * (p.in_features + p.out_features));
  torch::stable::parallel_for(0, p.rows, row_grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = make_scratch(kernels.scratch_size(p));
    kernels.update_rows(p, begin, end, scratch.get());
  });
}

// x·Wᵀ + bias: by the operator that knows which 16-bit dtypes the library is slow with.
Tensor layer(const LoraLinearArguments& a) {
  if (dtype_of(a.x) == Dtype::kFloat32) return linear(a.x, a.weight, a.bias);
  return call<Tensor>("refiners::linear", "", a.x, a.weight, a.bias);
}

Tensor lora_linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const std::vector<Tensor>& downs, const std::vector<Tensor>& ups, const Tensor& scale,
                       const std::optional<Tensor>& block) {
  LoraLinearArguments a = make_lora_linear_arguments(x, weight, bias, downs, ups, scale, block);
  const LoraLinearPlan plan = choose_plan(dtype_of(x), block.has_value()).plan;
  if (plan == LoraLinearPlan::kPortable) return lora_linear_portable(a);
  flatten_lora_linear_arguments(a);
  const LoraLinearCpuKernels& kernels = *lora_linear_cpu_kernels(cpu_isa());
  const auto pack_rows = [&](const LoraLinearPackRowsParams& p) {
    const int64_t grain = thread_grain(p.in_features + p.rank);
    torch::stable::parallel_for(0, p.rows, grain,
                                [&](int64_t begin, int64_t end) { kernels.pack_rows(p, begin, end); });
  };
  Tensor y;
  if (a.rank == 0 || a.rows == 0 || weight.size(0) == 0) {
    y = linear(a.x, weight, bias);
  } else if (plan == LoraLinearPlan::kBlock) {
    y = lora_linear_with_block(a, pack_rows);
  } else if (plan == LoraLinearPlan::kLibrary) {
    y = lora_linear_with_library(a, pack_rows);
  } else {
    y = layer(a);
    if (!y.is_contiguous()) y = torch::stable::contiguous(y);
    add_update(a, y, kernels);
  }
  return unflatten_lora_linear_result(a, y);
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("lora_linear", TORCH_BOX(&lora_linear_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" {

// "plan: reason" for a dtype.
__attribute__((visibility("default"))) const char* refiners_explain_lora_linear(const char* dtype, int has_block) {
  using namespace refiners;
  static thread_local std::string text;
  const LoraLinearChoice choice = choose_plan(dtype_named(dtype), has_block != 0);
  text = std::string(kLoraLinearPlanNames[static_cast<int>(choice.plan)]) + ": " + choice.reason;
  return text.c_str();
}

// Forces a plan, one of enum LoraLinearPlan, for tests and measurements; -1 gives the choice back.
__attribute__((visibility("default"))) void refiners_force_lora_linear_plan(int plan) { refiners::forced_plan = plan; }
}
