#include "lora_linear_simd.h"

namespace refiners {

const LoraLinearCpuKernels& lora_linear_avx512_kernels() {
  static constexpr LoraLinearCpuKernels kernels = make_lora_linear_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
