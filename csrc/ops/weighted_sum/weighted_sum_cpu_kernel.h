// The CPU kernels of weighted_sum: a table of them for each instruction set. Knows neither torch nor Python.
#pragma once

#include "../../common/cpu_features.h"
#include "weighted_sum_config.h"

namespace refiners {

struct WeightedSumCpuKernels {
  // y = Σ factor · tensor, for the elements [begin, end).
  void (*compute)(const WeightedSumParams&, int64_t begin, int64_t end);
};

const WeightedSumCpuKernels& weighted_sum_avx2_kernels();
const WeightedSumCpuKernels& weighted_sum_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const WeightedSumCpuKernels* weighted_sum_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &weighted_sum_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &weighted_sum_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
