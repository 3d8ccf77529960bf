// The CPU kernels of conv2d: parameters, and a table of them for each instruction set. Knows neither torch nor Python.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

struct Conv2dParams {
  Dtype dtype;  // of all tensors
  int64_t samples, in_channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // along the height, along the width
  const void* x;                                          // [sample, y, x, channel], the channels without gaps
  int64_t x_sample_stride, x_row_stride, x_pixel_stride;
  const void* weight;      // [out, in of a group, y, x], in one of two orders
  bool weight_by_channel;  // the input channels lie next to each other; else the places of the kernel do
  const void* bias;        // null: none
  const void* add;         // [sample, out], null: none
  const void* residual;    // as y, null: none
  bool silu;
  void* y;  // [sample, y, x, channel], without gaps
};

// A rectangle of the result of one group: rows are pixels of all samples, columns are output channels of the group.
struct Conv2dTile {
  int64_t group, row, rows, column, columns;
};

// A block of Winograd's squares of 2 x 2 pixels: consecutive ones, of all samples.
struct Conv2dSquares {
  int64_t first, count;
};

struct Conv2dCpuKernels {
  int64_t (*spectrum_size)(const Conv2dParams&);  // floats of a block of squares
  int64_t (*winograd_scratch_size)();             // floats that one thread needs for it

  // spectrum = Bᵀ·x·B of the channels [begin, end) of a block; begin is a multiple of kConv2dGrain.
  void (*transform)(const Conv2dParams&, const Conv2dSquares&, int64_t begin, int64_t end, float* spectrum);

  // The output channels [column, column + columns) of a block, for 3 x 3 kernels with a stride of 1.
  void (*compute_winograd)(const Conv2dParams&, const Conv2dSquares&, const float* spectrum, int64_t column,
                           int64_t columns, float* scratch);

  int64_t (*scratch_size)(int64_t rows, int64_t columns);  // floats that one thread needs for tiles of such a size

  // Any rectangle; it begins on a multiple of kConv2dGrain columns. Its size does not change the sums.
  void (*compute)(const Conv2dParams&, const Conv2dTile&, float* scratch);
};

const Conv2dCpuKernels& conv2d_avx2_kernels();
const Conv2dCpuKernels& conv2d_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const Conv2dCpuKernels* conv2d_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &conv2d_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &conv2d_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
