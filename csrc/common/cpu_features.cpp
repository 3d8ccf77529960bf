#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace refiners {
namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }

// The register states that the operating system saves and restores: without them an instruction must not be used.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

CpuFeatures detect() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  CpuFeatures f;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
  if (!bit(one.c, 27)) return f;  // no XSAVE
  const uint64_t saved = saved_states();
  f.avx2 = (saved & kYmm) == kYmm && bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);
  f.avx512 =
      f.avx2 && (saved & kZmm) == kZmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
  f.avx512_bf16 = f.avx512 && bit(more.a, 5);
  f.avx512_fp16 = f.avx512 && bit(seven.d, 23);
  f.amx_bf16 = f.avx512_bf16 && (saved & kTiles) == kTiles && bit(seven.d, 24) && bit(seven.d, 22);
  f.amx_fp16 = f.amx_bf16 && bit(more.a, 21);
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

CpuIsa best_cpu_isa(const CpuFeatures& features) {
#if defined(REFINERS_AVX512)
  if (features.amx_bf16) return CpuIsa::kAmx;
  if (features.avx512) return CpuIsa::kAvx512;
#endif
#if defined(REFINERS_AVX2)
  if (features.avx2) return CpuIsa::kAvx2;
#endif
  return CpuIsa::kPortable;
}

}  // namespace refiners
