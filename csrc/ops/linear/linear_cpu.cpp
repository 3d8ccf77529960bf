// linear on the CPU: tensors -> LinearParams, the choice of plan and instruction set, and tiles for the threads.

#include <algorithm>

#include "../../common/kernel_switches.h"
#include "../../common/rows.h"
#include "../../common/scratch.h"
#include "linear_config.h"
#include "linear_cpu_kernel.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("linear");

CpuPlan choose_plan(Dtype dtype) {
  const CpuIsa isa = kernels_on.on() ? cpu_isa() : CpuIsa::kPortable;
  return choose_linear_cpu_plan(isa, cpu_features(), dtype);
}

// Repeats the checks that keep memory safe: the operator can be called without its Python function.
void check_arguments(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && weight.size(1) == x.size(x.dim() - 1),
                  "linear: weight must have as many columns as x has features");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() && weight.device() == x.device(),
                  "linear: weight must have the dtype and device of x");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                            bias->scalar_type() == x.scalar_type() && bias->device() == x.device()),
                  "linear: bias must have an element for each row of weight, and the dtype and device of x");
}

bool has_unit_stride(const Tensor& matrix) {
  return matrix.stride(1) == 1 || matrix.stride(0) == 1 || matrix.size(0) == 1 || matrix.size(1) == 1;
}

LinearParams make_params(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  LinearParams p{};
  p.dtype = dtype_of(x);
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = y.size(1);
  p.x = x.const_data_ptr();
  p.x_stride = x.stride(0);
  p.weight = weight.const_data_ptr();
  p.weight_row_stride = weight.size(0) == 1 ? p.in_features : weight.stride(0);
  p.weight_column_stride = weight.size(1) == 1 ? 1 : weight.stride(1);
  p.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  p.y = y.mutable_data_ptr();
  p.y_stride = y.stride(0);
  return p;
}

void compute_few_rows(const LinearParams& p, const LinearCpuKernels& kernels) {
  const int64_t grain = (int64_t{1} << 16) / (p.rows * p.in_features) + 1;
  torch::stable::parallel_for(0, p.out_features, grain,
                              [&](int64_t begin, int64_t end) { kernels.compute_few_rows(p, begin, end); });
}

void compute_tiles(const LinearParams& p, const LinearCpuKernels& kernels) {
  const int64_t height = std::min(p.rows, kLinearCpuConfig.row_block);
  const int64_t width = choose_linear_columns(p.rows, p.out_features, torch::stable::get_num_threads());
  const int64_t across = (p.out_features + width - 1) / width;
  const int64_t tiles = (p.rows + height - 1) / height * across;
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch = make_scratch(kernels.scratch_size(height, width));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / across * height, column = i % across * width;
      kernels.compute(p, {row, std::min(height, p.rows - row), column, std::min(width, p.out_features - column)},
                      scratch.get());
    }
  });
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_arguments(x, weight, bias);
  const int64_t in_features = weight.size(1), out_features = weight.size(0);
  const Rows rows = rows_of(x);
  if (!choose_plan(dtype_of(x)).kernel || rows.count * in_features * out_features == 0) {
    return linear(x, weight, bias);
  }
  const Tensor left = flatten_rows(x, rows);
  const Tensor right = has_unit_stride(weight) ? weight : torch::stable::contiguous(weight);
  const Tensor offset = !bias ? Tensor() : bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  const Tensor y = torch::stable::new_empty(x, {rows.count, out_features});
  const LinearParams p = make_params(left, right, offset, y);
  const LinearCpuKernels& kernels = *linear_cpu_kernels(cpu_isa());
  if (p.rows <= kLinearFewRows && p.weight_column_stride == 1) {
    compute_few_rows(p, kernels);
  } else {
    compute_tiles(p, kernels);
  }
  return x.dim() == 2 ? y : torch::stable::reshape(y, rows.shape(out_features));
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("linear", TORCH_BOX(&linear_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_explain_linear(const char* dtype) {
  return refiners::describe(refiners::choose_plan(refiners::dtype_named(dtype)));
}
