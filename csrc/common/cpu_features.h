// What the CPU can do, asked once, and the instruction set that the kernels use. Knows neither torch nor Python.
#pragma once

#include "dtype.h"

namespace refiners {

// In the order of settings.ISAS in Python. Amx: the AVX512 kernels, with the library's matrix multiplications on AMX.
enum class CpuIsa : int { kPortable, kAvx2, kAvx512, kAmx };

constexpr int kCpuIsaCount = 4;
constexpr const char* kCpuIsaNames[kCpuIsaCount] = {"portable", "avx2", "avx512", "amx"};

struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, DQ and VL
  bool avx512_bf16 = false;  // bfloat16 dot products
  bool avx512_fp16 = false;
  bool amx_bf16 = false;  // tiles and their bfloat16 dot products
  bool amx_fp16 = false;
};

// The features that the CPU has and the operating system saves; a table filled at the first call.
const CpuFeatures& cpu_features();

// Whether the library has instructions that multiply numbers of a 16-bit dtype. Without them it converts one by one,
// and takes several times as long as in float32.
constexpr bool library_multiplies_fast(CpuIsa isa, const CpuFeatures& features, Dtype dtype) {
  if (isa != CpuIsa::kAvx512 && isa != CpuIsa::kAmx) return false;
  return dtype == Dtype::kBfloat16 ? features.avx512_bf16 : features.avx512_fp16 || features.amx_fp16;
}

// The best instruction set of a CPU, as far as this library was built for it.
CpuIsa best_cpu_isa(const CpuFeatures& features);

}  // namespace refiners
