// group_norm on the CPU: tensors -> GroupNormParams, and the merge of what the kernels measured.

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../common/cpu_plan.h"
#include "../../common/kernel_switches.h"
#include "../../common/scratch.h"
#include "../../common/stable_abi.h"
#include "group_norm_cpu_kernel.h"

namespace refiners {
namespace {

KernelSwitch kernels_on("group_norm");

constexpr int64_t kChunk = 8192;  // elements of x that a chunk holds, about: 32 KiB in float32

CpuPlan choose_plan(Dtype dtype) {
  return choose_cpu_plan(kernels_on.on() ? cpu_isa() : CpuIsa::kPortable, dtype, "two passes over memory, any layout");
}

void check_arguments(const Tensor& x, int64_t groups, const std::optional<Tensor>& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& add) {
  STD_TORCH_CHECK(x.dim() >= 2 && groups > 0 && x.size(1) % groups == 0,
                  "group_norm: x must have a number of channels that groups divides");
  for (const auto* vector : {&weight, &bias}) {
    STD_TORCH_CHECK(!*vector || ((*vector)->dim() == 1 && (*vector)->size(0) == x.size(1) &&
                                 (*vector)->scalar_type() == x.scalar_type() && (*vector)->device() == x.device()),
                    "group_norm: weight and bias must have an element for each channel, and the dtype of x");
  }
  STD_TORCH_CHECK(!add || (add->dim() == 2 && add->size(0) == x.size(0) && add->size(1) == x.size(1) &&
                           add->scalar_type() == x.scalar_type() && add->device() == x.device()),
                  "group_norm: add must be [batch, channels], and have the dtype of x");
}

// Whether the channels of x lie next to each other, without gaps.
bool is_channels_last(const Tensor& x) {
  int64_t stride = x.size(1);
  if (x.stride(1) != 1 && x.size(1) != 1) return false;
  for (int64_t i = x.dim() - 1; i > 1; --i) {
    if (x.stride(i) != stride && x.size(i) != 1) return false;
    stride *= x.size(i);
  }
  return x.size(0) == 1 || x.stride(0) == stride;
}

// A vector in float32 without gaps; an undefined tensor for none.
Tensor to_floats(const std::optional<Tensor>& vector) {
  if (!vector) return Tensor();
  const Tensor wide =
      vector->scalar_type() == ScalarType::Float ? *vector : torch::stable::to(*vector, ScalarType::Float);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

const float* floats_of(const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

// Mean and variance of a group of a sample, from its cells: `count` of them, `stride` apart, with `size(i)` elements.
template <class Size>
std::pair<double, double> merge(const GroupNormCell* cells, int64_t count, int64_t stride, const Size& size) {
  double total = 0, mean = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += static_cast<double>(size(i));
    mean += cells[i * stride].mean * static_cast<double>(size(i));
  }
  mean /= total;
  for (int64_t i = 0; i < count; ++i) {
    const double distance = cells[i * stride].mean - mean;
    squares += cells[i * stride].squares + distance * distance * static_cast<double>(size(i));
  }
  return {mean, squares / total};
}

// y = (x - centre) · factor + offset for each channel of each sample.
void find_factors(const GroupNormParams& p, const float* weight, double eps, float* centre, float* factor) {
  const int64_t size = p.channels / p.groups;
  for (int64_t n = 0; n < p.samples; ++n) {
    for (int64_t g = 0; g < p.groups; ++g) {
      const auto [mean, variance] =
          p.channels_last ? merge(p.cells + n * p.chunks * p.groups + g, p.chunks, p.groups,
                                  [&](int64_t i) { return group_norm_chunk(p, i).count * size; })
                          : merge(p.cells + n * p.channels + g * size, size, 1, [&](int64_t) { return p.pixels; });
      const double scale = 1.0 / std::sqrt(variance + eps);
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        const int64_t i = n * p.channels + c;
        centre[i] = static_cast<float>(mean - (p.add == nullptr ? 0.0 : p.add[i]));
        factor[i] = static_cast<float>(scale * (weight == nullptr ? 1.0 : weight[c]));
      }
    }
  }
}

Tensor group_norm_cpu(const Tensor& x, int64_t groups, const std::optional<Tensor>& weight,
                      const std::optional<Tensor>& bias, const std::optional<Tensor>& add, double eps, bool silu) {
  check_arguments(x, groups, weight, bias, add);
  if (!choose_plan(dtype_of(x)).kernel) {
    return call<Tensor>("refiners::_group_norm_portable", "", x, groups, weight, bias, add, eps, silu);
  }
  const bool channels_last = !x.is_contiguous() && is_channels_last(x);
  const Tensor in = channels_last || x.is_contiguous() ? x : torch::stable::contiguous(x);
  const Tensor y = torch::stable::empty_like(in);
  GroupNormParams p{};
  p.dtype = dtype_of(x);
  p.samples = x.size(0);
  p.channels = x.size(1);
  p.pixels = 1;
  for (int64_t i = 2; i < x.dim(); ++i) p.pixels *= x.size(i);
  p.groups = groups;
  p.channels_last = channels_last;
  if (p.samples * p.channels * p.pixels == 0) return y;
  p.x = in.const_data_ptr();
  p.y = y.mutable_data_ptr();
  const Tensor factors = to_floats(weight), offsets = to_floats(bias), added = to_floats(add);
  p.add = floats_of(added);
  p.silu = silu;
  const int64_t size = std::min(p.pixels, std::max<int64_t>(8, kChunk / p.channels));  // pixels of a chunk
  p.chunks = (p.pixels + size - 1) / size;
  std::vector<GroupNormCell> cells(p.samples * (channels_last ? p.chunks * groups : p.channels));
  p.cells = cells.data();
  const GroupNormCpuKernels& kernels = *group_norm_cpu_kernels(cpu_isa());
  const int64_t units = p.samples * (channels_last ? p.chunks : p.channels);
  const int64_t rows = p.samples * (channels_last ? p.pixels : p.channels);
  const int64_t elements = p.samples * p.channels * p.pixels;
  const auto grain = [&](int64_t parts) { return std::max<int64_t>(1, (int64_t{1} << 15) * parts / elements); };
  torch::stable::parallel_for(0, units, grain(units), [&](int64_t begin, int64_t end) {
    const Scratch scratch = make_scratch(2 * p.channels);
    kernels.measure(p, begin, end, scratch.get());
  });
  const int64_t vectors = p.samples * p.channels;
  const Scratch lines = make_scratch(2 * vectors + p.channels);
  float *centre = lines.get(), *factor = centre + vectors, *zeros = factor + vectors;
  find_factors(p, floats_of(factors), eps, centre, factor);
  std::fill_n(zeros, p.channels, 0.0f);
  p.centre = centre;
  p.factor = factor;
  p.offset = offsets.defined() ? floats_of(offsets) : zeros;
  torch::stable::parallel_for(0, rows, grain(rows), [&](int64_t begin, int64_t end) { kernels.apply(p, begin, end); });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(refiners, CPU, m) { m.impl("group_norm", TORCH_BOX(&group_norm_cpu)); }

}  // namespace
}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" __attribute__((visibility("default"))) const char* refiners_explain_group_norm(const char* dtype) {
  return refiners::describe(refiners::choose_plan(refiners::dtype_named(dtype)));
}
