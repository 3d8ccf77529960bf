#include "lora_linear_simd.h"

namespace refiners {

const LoraLinearCpuKernels& lora_linear_avx2_kernels() {
  static constexpr LoraLinearCpuKernels kernels = make_lora_linear_kernels<Avx2>();
  return kernels;
}

}  // namespace refiners
