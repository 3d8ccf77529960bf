// attention on the CPU: tensors -> AttentionParams, the choice of plan and instruction set, and tasks for the threads.

#include <algorithm>
#include <cmath>

#include "../../common/kernel_switches.h"
#include "../../common/scratch.h"
#include "attention_arguments.h"
#include "attention_config.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("attention");

CpuPlan choose_plan(Dtype dtype) {
  const CpuIsa isa = kernels_on.on() ? cpu_isa() : CpuIsa::kPortable;
  return choose_attention_cpu_plan(isa, cpu_features(), dtype);
}

Tensor call_portable(const AttentionArguments& a) {
  return call<Tensor>("refiners::_attention_portable", "", a.query, a.key, a.value, a.num_heads, a.is_causal, a.mask,
                      a.bias, a.scale, a.row_bias, a.column_bias, a.second_key, a.second_value, a.second_scale,
                      a.second_mask);
}

// The same arguments, as kernels read them.
AttentionArguments lay_out(AttentionArguments a) {
  for (Tensor* x : {&a.query, &a.key, &a.value}) *x = with_whole_rows(*x);
  for (OptionalTensor* x : {&a.row_bias, &a.column_bias, &a.second_key, &a.second_value}) {
    if (*x) *x = with_whole_rows(**x);
  }
  for (OptionalTensor* x : {&a.mask, &a.bias, &a.second_mask}) {
    if (*x) *x = with_whole_or_even_rows(**x);
  }
  return a;
}

AttentionSet make_set(const Tensor& key, const Tensor& value, const OptionalTensor& mask, const OptionalTensor& bias) {
  AttentionSet set{key.size(1), rows_of_tokens(key), rows_of_tokens(value), {}};
  if (mask) set.biases[0] = bias_view(*mask);
  if (bias) set.biases[1] = bias_view(*bias);
  return set;
}

AttentionParams make_params(const AttentionArguments& a, const Tensor& second_scale, const Tensor& y) {
  AttentionParams p{};
  p.dtype = dtype_of(a.query);
  p.batch = a.query.size(0);
  p.heads = a.num_heads;
  p.queries = a.query.size(1);
  p.features = a.query.size(2) / p.heads;
  p.value_features = a.value.size(2) / p.heads;
  p.query_block = choose_attention_query_block(p.batch * p.heads, p.queries);
  p.query = rows_of_tokens(a.query);
  p.scale = static_cast<float>(a.scale ? *a.scale : 1 / std::sqrt(static_cast<double>(p.features)));
  p.is_causal = a.is_causal;
  p.sets[0] = make_set(a.key, a.value, a.mask, a.bias);
  p.set_count = 1;
  if (a.second_key) {
    p.sets[1] = make_set(*a.second_key, *a.second_value, a.second_mask, {});
    p.set_count = 2;
    p.second_scale = static_cast<const float*>(second_scale.const_data_ptr());
    p.second_scale_stride = second_scale.numel() == 1 ? 0 : 1;
  }
  const int64_t keys = p.sets[0].keys + p.sets[1].keys;
  p.takes_turns = choose_attention_turns(p.heads, keys * (p.features + p.value_features));
  p.columns = 1;
  if (a.row_bias) {
    p.row_bias = bias_view(*a.row_bias);
    p.column_bias = bias_view(*a.column_bias);
    p.columns = a.column_bias->size(3);
  }
  p.y = y.mutable_data_ptr();
  p.y_batch_stride = y.stride(0);
  p.y_row_stride = y.stride(1);
  return p;
}

// In float32 and without gaps.
Tensor make_second_scale(const AttentionArguments& a) {
  if (!a.second_key) return {};
  if (!a.second_scale) return torch::stable::fill_(torch::stable::new_empty(a.query, {1}, ScalarType::Float), 1.0);
  return torch::stable::contiguous(torch::stable::to(*a.second_scale, ScalarType::Float));
}

Tensor attention_cpu(const Tensor& query, const Tensor& key, const Tensor& value, int64_t num_heads, bool is_causal,
                     const OptionalTensor& mask, const OptionalTensor& bias, std::optional<double> scale,
                     const OptionalTensor& row_bias, const OptionalTensor& column_bias,
                     const OptionalTensor& second_key, const OptionalTensor& second_value,
                     const OptionalTensor& second_scale, const OptionalTensor& second_mask) {
  const AttentionArguments given{query, key,      value,       num_heads,  is_causal,    mask,         bias,
                                 scale, row_bias, column_bias, second_key, second_value, second_scale, second_mask};
  check_arguments(given);
  const bool has_keys = key.numel() > 0 && (!second_key || second_key->numel() > 0);
  if (!choose_plan(dtype_of(query)).kernel || !has_keys) return call_portable(given);
  const Tensor y = torch::stable::new_empty(query, {query.size(0), query.size(1), value.size(2)});
  if (y.numel() == 0) return y;
  const AttentionArguments a = lay_out(given);
  const Tensor multiplier = make_second_scale(a);
  const AttentionParams p = make_params(a, multiplier, y);
  const AttentionCpuKernels& kernels = *attention_cpu_kernels(cpu_isa());
  const int64_t tasks = p.batch * p.heads * ((p.queries + p.query_block - 1) / p.query_block);
  const int64_t keys = p.sets[0].keys + p.sets[1].keys;
  const int64_t products = std::min(p.query_block, p.queries) * keys * (p.features + p.value_features);
  torch::stable::parallel_for(0, tasks, (int64_t{1} << 16) / products + 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch = make_scratch(kernels.scratch_size(p));
    kernels.compute(p, begin, end, scratch.get());
  });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("attention", TORCH_BOX(&attention_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_explain_attention(const char* dtype) {
  return refiners::describe(refiners::choose_plan(refiners::dtype_named(dtype)));
}
