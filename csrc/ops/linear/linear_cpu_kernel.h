// The CPU kernels of linear: parameters, and a table of them for each instruction set. Knows neither torch nor Python.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

struct LinearParams {
  Dtype dtype;  // of all matrices
  int64_t rows, in_features, out_features;
  const void* x;
  int64_t x_stride;
  const void* weight;  // [out, in]; one of its strides is 1
  int64_t weight_row_stride, weight_column_stride;
  const void* bias;  // null: none
  void* y;
  int64_t y_stride;
};

// A rectangle of the result.
struct LinearTile {
  int64_t row, rows, column, columns;
};

struct LinearCpuKernels {
  // Floats that one thread needs for tiles of at most so many rows and columns.
  int64_t (*scratch_size)(int64_t rows, int64_t columns);

  // Any rectangle; it begins on a multiple of kLinearGrain columns. Its size does not change the sums.
  void (*compute)(const LinearParams&, const LinearTile&, float* scratch);

  // The columns [begin, end) of all rows, at most kLinearFewRows; the weight has rows without gaps between elements.
  void (*compute_few_rows)(const LinearParams&, int64_t begin, int64_t end);
};

const LinearCpuKernels& linear_avx2_kernels();
const LinearCpuKernels& linear_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const LinearCpuKernels* linear_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &linear_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &linear_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
