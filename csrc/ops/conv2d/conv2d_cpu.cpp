// conv2d on the CPU: tensors -> Conv2dParams, the choice of method and instruction set, and work for the threads.

#include <algorithm>

#include "../../common/kernel_switches.h"
#include "../../common/scratch.h"
#include "conv2d_arguments.h"
#include "conv2d_config.h"
#include "conv2d_cpu_kernel.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("conv2d");

CpuPlan choose_plan(Dtype dtype) {
  const CpuIsa isa = kernels_on.on() ? cpu_isa() : CpuIsa::kPortable;
  return choose_conv2d_cpu_plan(isa, cpu_features(), dtype);
}

Conv2dMethod choose_method(const Conv2dArguments& a, const std::vector<int64_t>& shape) {
  if (!choose_plan(dtype_of(a.x)).kernel || a.x.numel() * a.weight.numel() == 0) return Conv2dMethod::kLibrary;
  const Conv2dShape problem{a.x.size(1),
                            shape[1],
                            a.groups,
                            {shape[2], shape[3]},
                            {a.weight.size(2), a.weight.size(3)},
                            {a.stride[0], a.stride[1]},
                            {a.dilation[0], a.dilation[1]}};
  return choose_conv2d_method(problem, dtype_of(a.x));
}

Conv2dParams make_params(const Conv2dArguments& a, const std::vector<int64_t>& shape, const Tensor& y) {
  Conv2dParams p{};
  p.dtype = dtype_of(a.x);
  p.samples = a.x.size(0);
  p.in_channels = a.x.size(1);
  p.height = a.x.size(2);
  p.width = a.x.size(3);
  p.out_channels = shape[1];
  p.out_height = shape[2];
  p.out_width = shape[3];
  p.groups = a.groups;
  for (int i = 0; i < 2; ++i) {
    p.kernel[i] = a.weight.size(2 + i);
    p.stride[i] = a.stride[i];
    p.padding[i] = a.padding[i];
    p.dilation[i] = a.dilation[i];
  }
  p.x = a.x.const_data_ptr();
  p.x_sample_stride = a.x.stride(0);
  p.x_row_stride = a.x.stride(2);
  p.x_pixel_stride = a.x.stride(3);
  p.weight = a.weight.const_data_ptr();
  p.weight_by_channel = is_channels_last(a.weight);
  p.bias = a.bias ? a.bias->const_data_ptr() : nullptr;
  p.add = a.add ? a.add->const_data_ptr() : nullptr;
  p.residual = a.residual ? a.residual->const_data_ptr() : nullptr;
  p.silu = a.silu;
  p.y = y.mutable_data_ptr();
  return p;
}

// Room for the result, its channels next to each other: no view, and with the strides that torch gives.
Tensor make_result(const Tensor& x, const std::vector<int64_t>& shape, bool channels_last) {
  const auto [samples, channels, height, width] = std::array{shape[0], shape[1], shape[2], shape[3]};
  if (!channels_last && (channels == 1 || height * width == 1)) return torch::stable::new_empty(x, shape);
  const std::vector<int64_t> strides{height * width * channels, 1, width * channels, channels};
  return call<Tensor>("aten::new_empty_strided", "", x, shape, strides, std::optional<ScalarType>(),
                      std::optional<int32_t>(), std::optional<torch::stable::Device>(), std::optional<bool>());
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void compute_winograd(const Conv2dParams& p, const Conv2dCpuKernels& kernels) {
  const int64_t squares = p.samples * ceil_div(p.out_height, 2) * ceil_div(p.out_width, 2);
  const int64_t size = choose_conv2d_squares(squares), blocks = ceil_div(squares, size);
  const int64_t spectrum_size = kernels.spectrum_size(p);
  const int64_t kept = std::clamp<int64_t>(kConv2dCpuConfig.spectra / 4 / spectrum_size, 1, blocks);
  const int64_t parts = ceil_div(p.in_channels, kConv2dGrain);
  constexpr int64_t kStrip = kConv2dCpuConfig.winograd_columns;
  const int64_t strips = ceil_div(p.out_channels, kStrip);
  const Scratch spectra = make_scratch(kept * spectrum_size);
  for (int64_t first = 0; first < blocks; first += kept) {
    const int64_t count = std::min(kept, blocks - first);
    const auto block = [&](int64_t i) -> Conv2dSquares {
      const int64_t begin = (first + i) * size;
      return {begin, std::min(size, squares - begin)};
    };
    torch::stable::parallel_for(0, count * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i % parts * kConv2dGrain;
        kernels.transform(p, block(i / parts), channel, std::min(channel + kConv2dGrain, p.in_channels),
                          spectra.get() + i / parts * spectrum_size);
      }
    });
    torch::stable::parallel_for(0, count * strips, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch = make_scratch(kernels.winograd_scratch_size());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i / count * kStrip;
        kernels.compute_winograd(p, block(i % count), spectra.get() + i % count * spectrum_size, column,
                                 std::min(kStrip, p.out_channels - column), scratch.get());
      }
    });
  }
}

void compute_products(const Conv2dParams& p, const Conv2dCpuKernels& kernels) {
  const int64_t rows = p.samples * p.out_height * p.out_width, columns = p.out_channels / p.groups;
  const int64_t height = std::min(rows, kConv2dCpuConfig.product_rows);
  const int64_t width = choose_conv2d_columns(rows, columns, p.groups, torch::stable::get_num_threads());
  const int64_t down = ceil_div(rows, height), across = ceil_div(columns, width);
  torch::stable::parallel_for(0, p.groups * down * across, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch = make_scratch(kernels.scratch_size(height, width));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / across % down * height, column = i % across * width;
      const int64_t group = i / (across * down);
      kernels.compute(p, {group, row, std::min(height, rows - row), column, std::min(width, columns - column)},
                      scratch.get());
    }
  });
}

Tensor conv2d_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& add,
                  const OptionalTensor& residual, std::vector<int64_t> stride, std::vector<int64_t> padding,
                  std::vector<int64_t> dilation, int64_t groups, bool silu) {
  const Conv2dArguments given{x, weight, bias, add, residual, stride, padding, dilation, groups, silu};
  check_arguments(given);
  const std::vector<int64_t> shape = output_shape(given);
  const Conv2dMethod method = choose_method(given, shape);
  const bool is_empty = shape[0] * shape[1] * shape[2] * shape[3] == 0;
  if (method == Conv2dMethod::kLibrary || is_empty) return call_portable(given);
  const Conv2dArguments a = lay_out(given, method == Conv2dMethod::kProducts);
  const bool channels_last = gives_channels_last(given);
  const Tensor y = make_result(x, shape, channels_last);
  const Conv2dParams p = make_params(a, shape, y);
  const Conv2dCpuKernels& kernels = *conv2d_cpu_kernels(cpu_isa());
  if (method == Conv2dMethod::kProducts) {
    compute_products(p, kernels);
  } else {
    compute_winograd(p, kernels);
  }
  return channels_last ? y : torch::stable::contiguous(y);
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("conv2d", TORCH_BOX(&conv2d_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_explain_conv2d(const char* dtype) {
  return refiners::describe(refiners::choose_plan(refiners::dtype_named(dtype)));
}
