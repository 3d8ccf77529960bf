// The choices of linear: who computes it, and in which tiles. Pure host functions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cpu_plan.h"

namespace refiners {

inline CpuPlan choose_linear_cpu_plan(CpuIsa isa, const CpuFeatures& features, Dtype dtype) {
  if (dtype != Dtype::kBfloat16 && dtype != Dtype::kFloat16) return {false, "torch multiplies this dtype well"};
  if (library_multiplies_fast(isa, features, dtype)) return {false, "this CPU has 16-bit multiplications"};
  return choose_cpu_plan(isa, dtype, "torch has no fast 16-bit multiplication with these instructions");
}

constexpr int64_t kLinearFewRows = 4;  // up to here the weight is read once and as it lies
constexpr int64_t kLinearGrain = 32;   // columns, a multiple of the panels of all instruction sets

// Tiles of the CPU kernels.
struct LinearCpuConfig {
  int64_t row_block = 192;     // of x in float32: with depth_block 192 KiB, of the L2 cache
  int64_t depth_block = 256;   // a panel of the weight takes 16 KiB of the L1 cache
  int64_t column_block = 256;  // sums of a tile: 192 KiB
};

constexpr LinearCpuConfig kLinearCpuConfig{};

// How many columns a tile takes: the blocks are even, and a multiple of the threads where there are few.
inline int64_t choose_linear_columns(int64_t rows, int64_t out_features, int64_t threads) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t row_tiles = ceil_div(rows, kLinearCpuConfig.row_block);
  int64_t column_tiles = ceil_div(out_features, kLinearCpuConfig.column_block);
  if (row_tiles * column_tiles < 8 * threads) {
    while (row_tiles * column_tiles % threads != 0) ++column_tiles;
  }
  return std::max<int64_t>(1, ceil_div(ceil_div(out_features, column_tiles), kLinearGrain)) * kLinearGrain;
}

}  // namespace refiners
