#include "attention_simd.h"

namespace refiners {

const AttentionCpuKernels& attention_avx2_kernels() {
  static constexpr AttentionCpuKernels kernels = make_attention_kernels<Avx2>();
  return kernels;
}

}  // namespace refiners
