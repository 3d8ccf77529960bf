// The CPU kernels of lora_linear: parameters, and a table of them for each instruction set. Knows neither torch nor
// Python.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

// One update; strides are in elements, so that transposed views need no copy.
struct LoraLinearAdapter {
  const void* down;  // [rank, in]
  int64_t down_row_stride, down_column_stride;
  const void* up;  // [out, rank]
  int64_t up_row_stride, up_column_stride;
  int64_t rank;
  int64_t first;  // its first column in d
};

struct LoraLinearParams {
  Dtype dtype;  // of x, y, down, up
  int64_t rows, in_features, out_features;
  int64_t rank;  // of all updates together
  const void* x;
  int64_t x_stride;
  void* y;  // the output of the layer, to which the updates are added
  int64_t y_stride;
  const LoraLinearAdapter* adapters;
  int64_t adapter_count;
  const float* scale;  // [adapters, scale_count]
  int64_t scale_count, rows_per_scale;
  float* packed_down;  // packed_down_size floats
  float* packed_up;    // packed_up_size floats
};

struct LoraLinearPackRowsParams {
  Dtype dtype;
  int64_t rows, in_features;
  int64_t rank, padded_rank;
  const void* x;  // null: leave the first columns alone
  int64_t x_stride;
  void* out;  // [rows, in_features + padded_rank], its last columns hold d
  int64_t out_stride;
  const LoraLinearAdapter* adapters;
  int64_t adapter_count;
  const float* scale;
  int64_t scale_count, rows_per_scale;
};

struct LoraLinearCpuKernels {
  int64_t (*packed_down_size)(const LoraLinearParams&);
  int64_t (*packed_up_size)(const LoraLinearParams&);
  int64_t (*scratch_size)(const LoraLinearParams&);  // floats that one thread needs in update_rows

  // A and B in float32, in panels that the kernels read in order. Any part of [0, in_features) or [0, out_features):
  // the parts may be packed at once. The begin of a part of B is a multiple of kPackGrain.
  void (*pack_down)(const LoraLinearParams&, int64_t begin, int64_t end);
  void (*pack_up)(const LoraLinearParams&, int64_t begin, int64_t end);

  // For the rows [begin, end): d = scale · x·Aᵀ, then y += d·Bᵀ.
  void (*update_rows)(const LoraLinearParams&, int64_t begin, int64_t end, float* scratch);

  // For all rows, at most kLoraLinearFewRows, where the rows of A and B are contiguous: d into scratch of
  // few_rows_size floats, for any part of [0, rank), then y for any part of [0, out_features). No packing before.
  int64_t (*few_rows_size)(const LoraLinearParams&);
  void (*project_few_rows)(const LoraLinearParams&, int64_t begin, int64_t end, float* d);
  void (*update_few_rows)(const LoraLinearParams&, int64_t begin, int64_t end, const float* d);

  // For the rows [begin, end) of [x | d]: copies x, multiplies d by its scale, writes zeros into the padding.
  void (*pack_rows)(const LoraLinearPackRowsParams&, int64_t begin, int64_t end);
};

constexpr int64_t kPackGrain = 32;

const LoraLinearCpuKernels& lora_linear_avx2_kernels();
const LoraLinearCpuKernels& lora_linear_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const LoraLinearCpuKernels* lora_linear_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &lora_linear_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &lora_linear_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
