// The CPU kernels of geglu: parameters, and a table of them for each instruction set. Knows neither torch nor Python.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

struct GegluParams {
  Dtype dtype;
  int64_t features;  // of the result: half of those of x
  const void* x;     // rows without gaps between elements
  int64_t x_stride;
  void* y;
  int64_t y_stride;
  bool tanh;  // the approximation by tanh
};

struct GegluCpuKernels {
  // y = first half of x · GeLU(second half of x), for the rows [begin, end).
  void (*compute)(const GegluParams&, int64_t begin, int64_t end);
};

const GegluCpuKernels& geglu_avx2_kernels();
const GegluCpuKernels& geglu_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const GegluCpuKernels* geglu_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &geglu_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &geglu_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
