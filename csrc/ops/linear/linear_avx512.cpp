#include "linear_simd.h"

namespace refiners {

const LinearCpuKernels& linear_avx512_kernels() {
  static constexpr LinearCpuKernels kernels = make_linear_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
