// The tensors of conv2d: the checks that keep memory safe, and the way to the layout that the kernels read.
#pragma once

#include <algorithm>

#include "../../common/stable_abi.h"

namespace refiners {

using OptionalTensor = std::optional<Tensor>;

struct Conv2dArguments {
  Tensor x, weight;
  OptionalTensor bias, add, residual;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  bool silu;
};

// Whether the channels lie next to each other, and nothing else has gaps.
inline bool is_channels_last(const Tensor& t) {
  int64_t stride = 1;
  for (const int64_t i : {1, 3, 2, 0}) {
    if (t.stride(i) != stride && t.size(i) != 1) return false;
    stride *= t.size(i);
  }
  return true;
}

// Whether torch takes the order of the strides for that of channels_last, gaps or not (c10/core/MemoryFormat.h).
inline bool looks_channels_last(const Tensor& t) {
  int64_t least = 0;
  for (const int64_t i : {1, 3, 2, 0}) {
    if (t.size(i) == 0 || t.stride(i) < least || (i == 1 && t.stride(i) == 0)) return false;
    if (i == 0 && least == t.stride(1)) return false;  // one channel of one pixel
    least = t.stride(i) * std::max<int64_t>(t.size(i), 1);
  }
  return true;
}

// The rule of torch: one of both asks for it.
inline bool gives_channels_last(const Conv2dArguments& a) {
  return looks_channels_last(a.x) || looks_channels_last(a.weight);
}

// Of a convolution whose arguments agree.
inline std::vector<int64_t> output_shape(const Conv2dArguments& a) {
  std::vector<int64_t> shape{a.x.size(0), a.weight.size(0), 0, 0};
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = a.dilation[i] * (a.weight.size(2 + i) - 1) + 1;
    shape[2 + i] = (a.x.size(2 + i) + 2 * a.padding[i] - reach) / a.stride[i] + 1;
  }
  return shape;
}

// Repeats the checks that keep memory safe: the operator can be called without its Python function.
inline void check_arguments(const Conv2dArguments& a) {
  STD_TORCH_CHECK(a.x.dim() == 4 && a.weight.dim() == 4, "conv2d: x and weight must have four dimensions");
  STD_TORCH_CHECK(a.stride.size() == 2 && a.padding.size() == 2 && a.dilation.size() == 2,
                  "conv2d: stride, padding and dilation must have two elements");
  STD_TORCH_CHECK(a.groups > 0 && a.weight.size(0) % a.groups == 0 && a.x.size(1) == a.weight.size(1) * a.groups,
                  "conv2d: weight must have the channels of x, divided into groups");
  for (int i = 0; i < 2; ++i) {
    constexpr int64_t kMost = int64_t{1} << 31;  // sums and products of such numbers do not overflow
    STD_TORCH_CHECK(a.stride[i] > 0 && a.padding[i] >= 0 && a.padding[i] <= kMost && a.dilation[i] > 0 &&
                        a.dilation[i] <= kMost && a.weight.size(2 + i) > 0,
                    "conv2d: stride, dilation and the sides of the kernel must be positive, padding not negative");
    STD_TORCH_CHECK(a.x.size(2 + i) + 2 * a.padding[i] > a.dilation[i] * (a.weight.size(2 + i) - 1),
                    "conv2d: the kernel must not be larger than the padded image");
  }
  const auto agrees = [&](const Tensor& t) {
    return t.scalar_type() == a.x.scalar_type() && t.device() == a.x.device();
  };
  STD_TORCH_CHECK(agrees(a.weight), "conv2d: weight must have the dtype and device of x");
  const std::vector<int64_t> shape = output_shape(a);
  STD_TORCH_CHECK(!a.bias || (agrees(*a.bias) && a.bias->dim() == 1 && a.bias->size(0) == shape[1]),
                  "conv2d: bias must have an element for each output channel, and the dtype and device of x");
  STD_TORCH_CHECK(
      !a.add || (agrees(*a.add) && a.add->dim() == 2 && a.add->size(0) == shape[0] && a.add->size(1) == shape[1]),
      "conv2d: add must be [batch, out_channels], with the dtype and device of x");
  if (!a.residual) return;
  bool same = agrees(*a.residual) && a.residual->dim() == 4;
  for (int i = 0; same && i < 4; ++i) same = a.residual->size(i) == shape[i];
  STD_TORCH_CHECK(same, "conv2d: residual must have the shape, dtype and device of the result");
}

inline Tensor make_channels_last(const Tensor& t) {
  return is_channels_last(t) ? t : torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

// The arguments as the kernels read them; copies only of what lies otherwise.
inline Conv2dArguments lay_out(const Conv2dArguments& a, bool weight_by_channel) {
  Conv2dArguments out = a;
  if (a.x.stride(1) != 1) out.x = make_channels_last(a.x);
  if (!is_channels_last(a.weight) && (weight_by_channel || !a.weight.is_contiguous())) {
    out.weight = make_channels_last(a.weight);
  }
  if (a.bias) out.bias = torch::stable::contiguous(*a.bias);
  if (a.add) out.add = torch::stable::contiguous(*a.add);
  if (a.residual) out.residual = make_channels_last(*a.residual);
  return out;
}

inline Tensor call_portable(const Conv2dArguments& a) {
  const Tensor y = call<Tensor>("refiners::_conv2d_portable", "", a.x, a.weight, a.bias, a.add, a.residual, a.stride,
                                a.padding, a.dilation, a.groups, a.silu);
  // Autocast, seen by the inner call only: kernels write in the dtype of `x`.
  STD_TORCH_CHECK(y.scalar_type() == a.x.scalar_type(), "autocast is on: call refiners.ops instead of torch.ops");
  return y;
}

}  // namespace refiners
