#include "weighted_sum_simd.h"

namespace refiners {

const WeightedSumCpuKernels& weighted_sum_avx2_kernels() {
  static constexpr WeightedSumCpuKernels kernels = make_weighted_sum_kernels<Avx2>();
  return kernels;
}

}  // namespace refiners
