// What the kernels of weighted_sum take, on all devices, and the choices for CUDA. Pure host code.
#pragma once

#include <cstdint>

#include "../../common/dtype.h"

namespace refiners {

constexpr int kWeightedSumMaxTerms = 6;

// By value in the parameters of a CUDA kernel: factors reach the device with the launch.
struct WeightedSumParams {
  int64_t count;  // elements of each tensor, all in the same order in memory and without gaps
  int terms;
  const void* tensors[kWeightedSumMaxTerms];
  Dtype dtypes[kWeightedSumMaxTerms];
  float factors[kWeightedSumMaxTerms];
  void* y;
  Dtype y_dtype;
};

constexpr int kWeightedSumVector = 8;  // elements of a CUDA thread, one or two loads of 16 bytes

// Whether all tensors can be read and written in pieces of 16 bytes.
inline bool weighted_sum_is_aligned(const WeightedSumParams& p) {
  uint64_t all = reinterpret_cast<uint64_t>(p.y);
  for (int t = 0; t < p.terms; ++t) all |= reinterpret_cast<uint64_t>(p.tensors[t]);
  return all % 16 == 0;
}

}  // namespace refiners
