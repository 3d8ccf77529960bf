// The CUDA kernel of lora_linear: parameters and launch. Knows neither torch nor Python.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../common/dtype.h"
#include "lora_linear_config.h"

namespace refiners {

struct LoraLinearPackParams {
  Dtype dtype;
  int64_t rows, in_features;
  int rank, padded_rank;
  const void* x;  // null, with in_features 0: there is only d
  int64_t x_stride;
  void* out;  // [rows, in_features + padded_rank]; the last columns hold d
  int64_t out_stride;
  const float* scale;  // [adapters, scale_count]
  int64_t scale_count, rows_per_scale;
  int adapters;
  int column_end[kLoraLinearMaxCudaAdapters];  // the column of d behind the last one of each adapter
};

// For each row: copies x in front of d, multiplies d by the scale of its adapter and row, writes zeros into the
// padding.
cudaError_t launch_lora_linear_pack(const LoraLinearPackParams& p, const LoraLinearPackConfig& config,
                                    cudaStream_t stream);

// cudaSuccess if the current device can run the kernel: not where the build has no code for it, or its driver is too
// old.
cudaError_t probe_lora_linear_pack();

}  // namespace refiners
