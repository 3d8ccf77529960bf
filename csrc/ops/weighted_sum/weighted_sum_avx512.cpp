#include "weighted_sum_simd.h"

namespace refiners {

const WeightedSumCpuKernels& weighted_sum_avx512_kernels() {
  static constexpr WeightedSumCpuKernels kernels = make_weighted_sum_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
