// The arguments of lora_linear as the bindings of all devices need them: checked, in rows, with float32 multipliers.
#pragma once

#include "../../common/stable_abi.h"
#include "lora_linear_config.h"
#include "lora_linear_cpu_kernel.h"

namespace refiners {

struct LoraLinearArguments {
  Tensor x;  // [rows, in], its rows contiguous
  Tensor weight;
  std::optional<Tensor> bias;
  std::vector<Tensor> downs, ups;
  Tensor scale;  // [adapters, scale_count] in float32, contiguous
  std::optional<Tensor> block;
  std::vector<int64_t> shape;  // of the result
  std::vector<LoraLinearAdapter> adapters;
  int64_t rows = 1, rank = 0, padded_rank = 0, scale_count = 1, rows_per_scale = 1;
};

// Repeats the checks that keep memory safe: the operator can be called without its Python function.
inline LoraLinearArguments make_lora_linear_arguments(const Tensor& x, const Tensor& weight,
                                                      const std::optional<Tensor>& bias,
                                                      const std::vector<Tensor>& downs, const std::vector<Tensor>& ups,
                                                      const Tensor& scale, const std::optional<Tensor>& block) {
  STD_TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && weight.size(1) == x.size(x.dim() - 1),
                  "lora_linear: weight must have as many columns as x has features");
  STD_TORCH_CHECK(downs.size() == ups.size() && scale.dim() >= 1 && scale.dim() <= x.dim() &&
                      scale.size(0) == static_cast<int64_t>(downs.size()),
                  "lora_linear: downs, ups and scale must have one entry for each update");
  LoraLinearArguments a{x, weight, bias, downs, ups, scale, block, {}, {}};
  const int64_t in_features = weight.size(1), out_features = weight.size(0);
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    a.shape.push_back(x.size(i));
    a.rows *= x.size(i);
    if (i + 1 < scale.dim()) {
      STD_TORCH_CHECK(scale.size(i + 1) == x.size(i), "lora_linear: scale must begin as the batch of x does");
      a.scale_count *= x.size(i);
    }
  }
  a.rows_per_scale = a.scale_count > 0 ? a.rows / a.scale_count : 1;
  for (size_t i = 0; i < downs.size(); ++i) {
    const Tensor &down = downs[i], &up = ups[i];
    STD_TORCH_CHECK(down.dim() == 2 && up.dim() == 2 && down.size(1) == in_features && up.size(0) == out_features &&
                        down.size(0) == up.size(1),
                    "lora_linear: downs must be (rank, in_features) and ups (out_features, rank)");
    STD_TORCH_CHECK(down.scalar_type() == x.scalar_type() && up.scalar_type() == x.scalar_type() &&
                        down.device() == x.device() && up.device() == x.device(),
                    "lora_linear: downs and ups must have the dtype and device of x");
    a.adapters.push_back({down.const_data_ptr(), down.stride(0), down.stride(1), up.const_data_ptr(), up.stride(0),
                          up.stride(1), down.size(0), a.rank});
    a.rank += down.size(0);
  }
  STD_TORCH_CHECK(scale.device() == x.device(), "lora_linear: scale must be on the device of x");
  a.padded_rank = (a.rank + 7) / 8 * 8;
  if (block) {
    STD_TORCH_CHECK(block->dim() == 2 && block->size(0) == out_features &&
                        block->size(1) == in_features + a.padded_rank && block->scalar_type() == x.scalar_type(),
                    "lora_linear: block must be (out_features, in_features + rank)");
  }
  a.shape.push_back(out_features);
  return a;
}

// What only kernels need, and the portable path does not: x in rows, multipliers in float32.
inline void flatten_lora_linear_arguments(LoraLinearArguments& a) {
  if (a.x.dim() != 2) a.x = torch::stable::reshape(a.x, {a.rows, a.weight.size(1)});
  if (a.weight.size(1) > 1 && a.x.stride(1) != 1) a.x = torch::stable::contiguous(a.x);
  if (a.scale.scalar_type() != ScalarType::Float) a.scale = torch::stable::to(a.scale, ScalarType::Float);
  if (!a.scale.is_contiguous()) a.scale = torch::stable::contiguous(a.scale);
}

// The result [rows, out] with the dimensions of x.
inline Tensor unflatten_lora_linear_result(const LoraLinearArguments& a, const Tensor& y) {
  return a.shape.size() == 2 ? y : torch::stable::reshape(y, a.shape);
}

inline Tensor lora_linear_portable(const LoraLinearArguments& a) {
  return call<Tensor>("refiners::_lora_linear_portable", "", a.x, a.weight, a.bias, a.downs, a.ups, a.scale, a.block);
}

}  // namespace refiners
