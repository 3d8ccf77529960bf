// The choices of conv2d: who computes it, how, and in which blocks. Pure host functions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cpu_plan.h"

namespace refiners {

enum class Conv2dMethod : int { kLibrary, kProducts, kWinograd };

struct Conv2dShape {
  int64_t in_channels, out_channels, groups;
  int64_t out[2];  // height and width of the result
  int64_t kernel[2], stride[2], dilation[2];
};

constexpr int64_t kConv2dGrain = 64;  // channels, a multiple of the panels of all instruction sets

// Blocks of the CPU kernels.
struct Conv2dCpuConfig {
  int64_t depth_block = 64;       // input channels whose weights are transformed at once
  int64_t winograd_columns = 32;  // output channels of a thread's sums, which stay in the L2 cache
  int64_t squares = 96;           // squares of a block
  int64_t spectra = 8 << 20;      // bytes of transformed pixels that are kept for all threads: of the L3 cache
  int64_t product_rows = 192, product_columns = 256, product_depth = 256;
};

constexpr Conv2dCpuConfig kConv2dCpuConfig{};

inline CpuPlan choose_conv2d_cpu_plan(CpuIsa isa, const CpuFeatures& features, Dtype dtype) {
  if (library_multiplies_fast(isa, features, dtype)) return {false, "this CPU has 16-bit multiplications"};
  return choose_cpu_plan(isa, dtype, "Winograd's algorithm for kernels of 3 x 3 with a stride of 1");
}

inline Conv2dMethod choose_conv2d_method(const Conv2dShape& s, Dtype dtype) {
  const bool plain = s.groups == 1 && s.kernel[0] == 3 && s.kernel[1] == 3 && s.stride[0] == 1 && s.stride[1] == 1 &&
                     s.dilation[0] == 1 && s.dilation[1] == 1 && s.out[0] > 1 && s.out[1] > 1;
  if (plain && s.in_channels >= 16 && s.out_channels >= 16) return Conv2dMethod::kWinograd;
  // The library's own loops for few channels in a group, such as one, are better than a panel that is mostly empty.
  const bool fills_a_panel = s.groups == 1 || s.out_channels / s.groups >= 8;
  return dtype != Dtype::kFloat32 && fills_a_panel ? Conv2dMethod::kProducts : Conv2dMethod::kLibrary;
}

// How many squares a block has: blocks are even, and a multiple of the rows that are multiplied at once.
inline int64_t choose_conv2d_squares(int64_t squares) {
  constexpr int64_t kRows = 12;  // a multiple of those of all instruction sets
  constexpr int64_t most = kConv2dCpuConfig.squares;
  const int64_t blocks = (squares + most - 1) / most, even = (squares + blocks - 1) / blocks;
  return std::min(most, (even + kRows - 1) / kRows * kRows);
}

// How many columns a tile of products takes: a multiple of the grain, and tiles for all threads.
inline int64_t choose_conv2d_columns(int64_t rows, int64_t columns, int64_t groups, int64_t threads) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t others = groups * ceil_div(rows, kConv2dCpuConfig.product_rows);
  int64_t count = ceil_div(columns, kConv2dCpuConfig.product_columns);
  if (others * count < 8 * threads) {
    while (others * count % threads != 0) ++count;
  }
  return std::max<int64_t>(1, ceil_div(ceil_div(columns, count), kConv2dGrain)) * kConv2dGrain;
}

}  // namespace refiners
