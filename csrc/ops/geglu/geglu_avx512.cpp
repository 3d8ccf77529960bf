#include "geglu_simd.h"

namespace refiners {

const GegluCpuKernels& geglu_avx512_kernels() {
  static constexpr GegluCpuKernels kernels = make_geglu_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
