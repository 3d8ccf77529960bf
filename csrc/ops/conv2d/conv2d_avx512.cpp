#include "conv2d_simd.h"

namespace refiners {

const Conv2dCpuKernels& conv2d_avx512_kernels() {
  static constexpr Conv2dCpuKernels kernels = make_conv2d_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
