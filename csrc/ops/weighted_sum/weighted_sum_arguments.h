// The arguments of weighted_sum as the bindings of all devices need them: checked, and in one order in memory.
#pragma once

#include "../../common/stable_abi.h"
#include "weighted_sum_config.h"

namespace refiners {

using OptionalDtype = std::optional<ScalarType>;

// Repeats the checks that keep memory safe: the operator can be called without its Python function.
inline void check_weighted_sum(const std::vector<Tensor>& tensors, const std::vector<double>& factors) {
  STD_TORCH_CHECK(!tensors.empty() && tensors.size() == factors.size(),
                  "weighted_sum: tensors and factors must be as many, and one at least");
  const Tensor& first = tensors[0];
  for (const Tensor& tensor : tensors) {
    bool is_alike = tensor.dim() == first.dim() && tensor.device() == first.device();
    for (int64_t i = 0; is_alike && i < first.dim(); ++i) is_alike = tensor.size(i) == first.size(i);
    STD_TORCH_CHECK(is_alike, "weighted_sum: tensors must have one shape and one device");
  }
}

// Whether kernels take these; where they do not, torch's functions compute.
inline bool kernels_take_weighted_sum(const std::vector<Tensor>& tensors, const std::vector<double>& factors,
                                      const OptionalDtype& dtype) {
  int terms = 0;
  for (const double factor : factors) terms += factor != 0;
  bool are_known = terms <= kWeightedSumMaxTerms && (!dtype || dtype_of(*dtype) != Dtype::kOther);
  for (const Tensor& tensor : tensors) are_known = are_known && dtype_of(tensor) != Dtype::kOther;
  return are_known;
}

inline Tensor portable_weighted_sum(const std::vector<Tensor>& tensors, const std::vector<double>& factors,
                                    const OptionalDtype& dtype) {
  return call<Tensor>("refiners::_weighted_sum_portable", "", tensors, factors, dtype);
}

inline Tensor empty_like(const Tensor& x, const OptionalDtype& dtype) {
  constexpr std::nullopt_t as_x = std::nullopt;
  return call<Tensor>("aten::empty_like", "", x, dtype, as_x, as_x, as_x, as_x);
}

inline bool have_one_order(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

struct WeightedSumArguments {
  Tensor y;                    // dense, in the order of the first tensor
  std::vector<Tensor> copies;  // of tensors that lie otherwise in memory
  WeightedSumParams params;
};

// For arguments that kernels take. Terms with the factor 0 are left out.
inline WeightedSumArguments make_weighted_sum_arguments(const std::vector<Tensor>& tensors,
                                                        const std::vector<double>& factors,
                                                        const OptionalDtype& dtype) {
  WeightedSumArguments a{empty_like(tensors[0], dtype), {}, {}};
  WeightedSumParams& p = a.params;
  p.count = a.y.numel();
  p.y = a.y.mutable_data_ptr();
  p.y_dtype = dtype_of(a.y);
  for (size_t t = 0; t < tensors.size() && p.count > 0; ++t) {
    if (factors[t] == 0) continue;
    const Tensor* tensor = &tensors[t];
    if (!have_one_order(*tensor, a.y)) {
      a.copies.push_back(empty_like(a.y, tensor->scalar_type()));
      torch::stable::copy_(a.copies.back(), *tensor);
      tensor = &a.copies.back();
    }
    p.tensors[p.terms] = tensor->const_data_ptr();
    p.dtypes[p.terms] = dtype_of(*tensor);
    p.factors[p.terms] = static_cast<float>(factors[t]);
    ++p.terms;
  }
  return a;
}

}  // namespace refiners
