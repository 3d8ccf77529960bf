#include "linear_simd.h"

namespace refiners {

const LinearCpuKernels& linear_avx2_kernels() {
  static constexpr LinearCpuKernels kernels = make_linear_kernels<Avx2>();
  return kernels;
}

}  // namespace refiners
