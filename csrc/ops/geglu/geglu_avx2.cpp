#include "geglu_simd.h"

namespace refiners {

const GegluCpuKernels& geglu_avx2_kernels() {
  static constexpr GegluCpuKernels kernels = make_geglu_kernels<Avx2>();
  return kernels;
}

}  // namespace refiners
