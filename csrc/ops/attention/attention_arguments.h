// The arguments of attention: the checks that keep memory safe, and the views that kernels take.
#pragma once

#include "../../common/stable_abi.h"
#include "attention_cpu_kernel.h"

namespace refiners {

using OptionalTensor = std::optional<Tensor>;

struct AttentionArguments {
  Tensor query, key, value;
  int64_t num_heads;
  bool is_causal;
  OptionalTensor mask, bias;
  std::optional<double> scale;
  OptionalTensor row_bias, column_bias, second_key, second_value, second_scale, second_mask;
};

inline void check_tokens(const AttentionArguments& a, const Tensor& x, int64_t tokens, const char* message) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == a.query.size(0) && (tokens < 0 || x.size(1) == tokens) &&
                      x.size(2) % a.num_heads == 0 && x.scalar_type() == a.query.scalar_type() &&
                      x.device() == a.query.device(),
                  message);
}

// Broadcastable to [batch, heads, queries, keys]; the first size may be any divisor of the batch.
inline void check_bias(const AttentionArguments& a, const OptionalTensor& bias, bool may_be_bool, int64_t keys,
                       const char* message) {
  if (!bias) return;
  const std::array<int64_t, 4> sizes{a.query.size(0), a.num_heads, a.query.size(1), keys};
  bool fits =
      bias->dim() <= 4 && bias->device() == a.query.device() &&
      (bias->scalar_type() == a.query.scalar_type() || (may_be_bool && bias->scalar_type() == ScalarType::Bool));
  for (int64_t i = 4 - bias->dim(), j = 0; fits && i < 4; ++i, ++j) {
    const int64_t size = bias->size(j);
    fits = size == 1 || size == sizes[static_cast<size_t>(i)] || (i == 0 && size > 0 && sizes[0] % size == 0);
  }
  STD_TORCH_CHECK(fits, message);
}

// Repeats the checks that keep memory safe: the operator can be called without its Python function.
inline void check_arguments(const AttentionArguments& a) {
  STD_TORCH_CHECK(a.num_heads > 0, "attention: num_heads must be at least 1");
  STD_TORCH_CHECK(a.query.dim() == 3, "attention: query must be (batch, queries, features)");
  check_tokens(a, a.query, -1, "attention: num_heads must divide the features of query");
  check_tokens(a, a.key, -1, "attention: key must be (batch, keys, features) and otherwise as query");
  check_tokens(a, a.value, a.key.size(1), "attention: value must be (batch, keys, features) and otherwise as query");
  STD_TORCH_CHECK(a.key.size(2) == a.query.size(2), "attention: key must have as many features as query");
  const int64_t keys = a.key.size(1);
  check_bias(a, a.mask, true, keys, "attention: mask must be broadcastable to (batch, heads, queries, keys)");
  check_bias(a, a.bias, false, keys, "attention: bias must be broadcastable to (batch, heads, queries, keys)");
  STD_TORCH_CHECK(a.row_bias.has_value() == a.column_bias.has_value(), "attention: row_bias goes with column_bias");
  if (a.row_bias) {
    STD_TORCH_CHECK(
        a.row_bias->dim() == 4 && a.column_bias->dim() == 4 && a.row_bias->size(3) * a.column_bias->size(3) == keys,
        "attention: row_bias and column_bias must be (batch, heads, queries, rows or columns of the keys)");
    check_bias(a, a.row_bias, false, a.row_bias->size(3), "attention: row_bias does not fit query");
    check_bias(a, a.column_bias, false, a.column_bias->size(3), "attention: column_bias does not fit query");
  }
  STD_TORCH_CHECK(a.second_key.has_value() == a.second_value.has_value(),
                  "attention: second_key goes with second_value");
  STD_TORCH_CHECK(a.second_key || (!a.second_scale && !a.second_mask), "attention: second_key is missing");
  if (!a.second_key) return;
  const int64_t second_keys = a.second_key->size(1);
  check_tokens(a, *a.second_key, -1, "attention: second_key must be (batch, keys, features) and otherwise as key");
  check_tokens(a, *a.second_value, second_keys, "attention: second_value must be (batch, keys, features)");
  STD_TORCH_CHECK(a.second_key->size(2) == a.key.size(2) && a.second_value->size(2) == a.value.size(2),
                  "attention: second_key and second_value must have the features of key and value");
  check_bias(a, a.second_mask, true, second_keys, "attention: second_mask must be broadcastable");
  STD_TORCH_CHECK(!a.second_scale || (a.second_scale->device() == a.query.device() && a.second_scale->dim() <= 1 &&
                                      (a.second_scale->numel() == 1 || a.second_scale->size(0) == a.query.size(0))),
                  "attention: second_scale must have one element, or one for each sample");
}

// What the kernel reads: rows without gaps; a copy only where there are some.
inline Tensor with_whole_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

// The same for what may be one value for the whole row.
inline Tensor with_whole_or_even_rows(const Tensor& x) {
  return x.dim() == 0 || x.stride(x.dim() - 1) == 0 ? x : with_whole_rows(x);
}

inline AttentionRows rows_of_tokens(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1)}; }

inline AttentionBias bias_view(const Tensor& bias) {
  const int64_t missing = 4 - bias.dim();
  const auto stride = [&](int64_t i) {
    return i < missing || bias.size(i - missing) == 1 ? int64_t{0} : bias.stride(i - missing);
  };
  const int64_t samples = missing > 0 ? 1 : bias.size(0);
  return {bias.const_data_ptr(),
          bias.scalar_type() == ScalarType::Bool,
          samples,
          stride(0),
          stride(1),
          stride(2),
          stride(3)};
}

}  // namespace refiners
