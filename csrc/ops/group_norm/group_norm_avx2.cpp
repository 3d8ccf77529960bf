#include "group_norm_simd.h"

namespace refiners {

const GroupNormCpuKernels& group_norm_avx2_kernels() {
  static constexpr GroupNormCpuKernels kernels = make_group_norm_kernels<Avx2>();
  return kernels;
}

}  // namespace refiners
