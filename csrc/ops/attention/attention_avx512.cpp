#include "attention_simd.h"

namespace refiners {

const AttentionCpuKernels& attention_avx512_kernels() {
  static constexpr AttentionCpuKernels kernels = make_attention_kernels<Avx512>();
  return kernels;
}

}  // namespace refiners
