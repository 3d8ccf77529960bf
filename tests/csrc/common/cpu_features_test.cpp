#include "common/cpu_features.h"

#include "check.h"
#include "common/kernel_switches.h"

using namespace refiners;

namespace {

int best(const CpuFeatures& features) { return static_cast<int>(best_cpu_isa(features)); }

constexpr int kPortable = static_cast<int>(CpuIsa::kPortable);

}  // namespace

TEST(a_cpu_without_extensions_is_portable) { CHECK_EQ(best({}), kPortable); }

#if defined(REFINERS_AVX2) && defined(REFINERS_AVX512)
TEST(the_best_extension_decides) {
  CHECK_EQ(best({.avx2 = true}), static_cast<int>(CpuIsa::kAvx2));
  CHECK_EQ(best({.avx2 = true, .avx512 = true}), static_cast<int>(CpuIsa::kAvx512));
  CHECK_EQ(best({.avx2 = true, .avx512 = true, .avx512_bf16 = true}), static_cast<int>(CpuIsa::kAvx512));
  CHECK_EQ(best({.avx2 = true, .avx512 = true, .avx512_bf16 = true, .amx_bf16 = true}), static_cast<int>(CpuIsa::kAmx));
}

TEST(this_cpu_agrees_with_the_compiler) {
  CHECK_EQ(cpu_features().avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  CHECK_EQ(cpu_features().avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
}
#endif

TEST(an_instruction_set_is_used_only_where_the_cpu_has_it) {
  const CpuIsa before = cpu_isa();
  CHECK(before == best_cpu_isa(cpu_features()));
  CHECK(use_cpu_isa(CpuIsa::kPortable));
  CHECK(cpu_isa() == CpuIsa::kPortable);
  for (int isa = static_cast<int>(before) + 1; isa < kCpuIsaCount; ++isa) CHECK(!use_cpu_isa(static_cast<CpuIsa>(isa)));
  CHECK(!use_cpu_isa(static_cast<CpuIsa>(-1)));
  CHECK(cpu_isa() == CpuIsa::kPortable);
  CHECK(use_cpu_isa(before));
}

TEST(a_switch_answers_to_its_name) {
  const KernelSwitch first("first");
  const KernelSwitch second("second");
  CHECK(first.on());
  use_kernels("first", false);
  CHECK(!first.on());
  CHECK(second.on());
  use_kernels("first", true);
  CHECK(first.on());
}
