#include "group_norm_simd.h"

namespace refiners {

const GroupNormCpuKernels& group_norm_avx512_kernels() {
  static constexpr GroupNormCpuKernels kernels = make_group_norm_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
