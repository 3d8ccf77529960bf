// The two plans that leave the multiplications to the library, on any device. What they need besides, a kernel that
// scales d and moves x beside it, comes from the device.
#pragma once

#include "lora_linear_arguments.h"

namespace refiners {

// d = x·Aᵀ into the columns of `out` from `first` on.
inline void lora_linear_project(const LoraLinearArguments& a, Tensor out, int64_t first) {
  for (size_t i = 0; i < a.downs.size(); ++i) {
    if (a.adapters[i].rank == 0) continue;
    product_out(a.x, a.downs[i], torch::stable::narrow(out, 1, first + a.adapters[i].first, a.adapters[i].rank));
  }
}

inline LoraLinearPackRowsParams make_pack_rows_params(const LoraLinearArguments& a, const Tensor& out, bool with_x) {
  LoraLinearPackRowsParams p{};
  p.dtype = dtype_of(a.x);
  p.rows = a.rows;
  p.in_features = with_x ? a.x.size(1) : 0;
  p.rank = a.rank;
  p.padded_rank = with_x ? a.padded_rank : a.rank;
  p.x = with_x ? a.x.const_data_ptr() : nullptr;
  p.x_stride = a.x.stride(0);
  p.out = out.mutable_data_ptr();
  p.out_stride = out.stride(0);
  p.adapters = a.adapters.data();
  p.adapter_count = static_cast<int64_t>(a.adapters.size());
  p.scale = a.scale.const_data_ptr<float>();
  p.scale_count = a.scale_count;
  p.rows_per_scale = a.rows_per_scale;
  return p;
}

// [x | d] · [W | B]ᵀ + bias. `pack_rows(params)` runs the kernel.
template <class PackRows>
Tensor lora_linear_with_block(const LoraLinearArguments& a, const PackRows& pack_rows) {
  Tensor buffer = torch::stable::new_empty(a.x, {a.rows, a.x.size(1) + a.padded_rank});
  lora_linear_project(a, buffer, a.x.size(1));
  pack_rows(make_pack_rows_params(a, buffer, true));
  return linear(buffer, *a.block, a.bias);
}

// x·Wᵀ + bias, then y += d·Bᵀ for each update.
template <class PackRows>
Tensor lora_linear_with_library(const LoraLinearArguments& a, const PackRows& pack_rows) {
  Tensor y = linear(a.x, a.weight, a.bias);
  Tensor d = torch::stable::new_empty(a.x, {a.rows, a.rank});
  lora_linear_project(a, d, 0);
  pack_rows(make_pack_rows_params(a, d, false));
  for (size_t i = 0; i < a.ups.size(); ++i) {
    if (a.adapters[i].rank == 0) continue;
    add_product(y, torch::stable::narrow(d, 1, a.adapters[i].first, a.adapters[i].rank), a.ups[i]);
  }
  return y;
}

}  // namespace refiners
