#include "ops/lora_linear/lora_linear_config.h"

#include "check.h"

using namespace refiners;

namespace {

const CpuFeatures kAvx2Only{.avx2 = true};
const CpuFeatures kBfloat16{.avx2 = true, .avx512 = true, .avx512_bf16 = true};
const CpuFeatures kFloat16{.avx2 = true, .avx512 = true, .avx512_fp16 = true};

std::string cpu_plan(CpuIsa isa, const CpuFeatures& features, Dtype dtype, bool has_block) {
  return kLoraLinearPlanNames[static_cast<int>(choose_lora_linear_cpu_plan(isa, features, dtype, has_block).plan)];
}

std::string cuda_plan(Dtype dtype, std::int64_t adapters, bool has_block) {
  return kLoraLinearPlanNames[static_cast<int>(choose_lora_linear_cuda_plan(dtype, adapters, has_block).plan)];
}

}  // namespace

TEST(another_dtype_or_no_instructions_is_portable) {
  CHECK_EQ(cpu_plan(CpuIsa::kAmx, kBfloat16, Dtype::kOther, true), "portable");
  CHECK_EQ(cpu_plan(CpuIsa::kPortable, kBfloat16, Dtype::kFloat32, true), "portable");
}

TEST(own_kernels_where_the_library_is_slow_in_16_bits) {
  for (const Dtype dtype : {Dtype::kBfloat16, Dtype::kFloat16}) {
    for (const bool has_block : {false, true}) {
      CHECK_EQ(cpu_plan(CpuIsa::kAvx2, kAvx2Only, dtype, has_block), "update");
      CHECK_EQ(cpu_plan(CpuIsa::kAvx2, kBfloat16, dtype, has_block), "update");  // AVX2 was asked for
    }
  }
  CHECK_EQ(cpu_plan(CpuIsa::kAvx512, kBfloat16, Dtype::kFloat16, true), "update");
  CHECK_EQ(cpu_plan(CpuIsa::kAvx512, kFloat16, Dtype::kBfloat16, true), "update");
}

TEST(the_block_where_the_library_is_fast_in_16_bits) {
  CHECK_EQ(cpu_plan(CpuIsa::kAvx512, kBfloat16, Dtype::kBfloat16, true), "block");
  CHECK_EQ(cpu_plan(CpuIsa::kAvx512, kBfloat16, Dtype::kBfloat16, false), "library");
  CHECK_EQ(cpu_plan(CpuIsa::kAmx, kFloat16, Dtype::kFloat16, true), "block");
}

TEST(every_choice_has_a_reason) {
  for (int isa = 0; isa < kCpuIsaCount; ++isa) {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16, Dtype::kOther}) {
      CHECK(*choose_lora_linear_cpu_plan(static_cast<CpuIsa>(isa), kBfloat16, dtype, true).reason != '\0');
    }
  }
}

TEST(a_gpu_uses_the_block_if_it_is_given) {
  CHECK_EQ(cuda_plan(Dtype::kBfloat16, 1, true), "block");
  CHECK_EQ(cuda_plan(Dtype::kFloat32, 1, false), "library");
  CHECK_EQ(cuda_plan(Dtype::kOther, 1, true), "portable");
  CHECK_EQ(cuda_plan(Dtype::kBfloat16, kLoraLinearMaxCudaAdapters, true), "block");
  CHECK_EQ(cuda_plan(Dtype::kBfloat16, kLoraLinearMaxCudaAdapters + 1, true), "portable");
}

TEST(x_moves_in_vectors_of_16_bytes_only_if_every_row_is_aligned) {
  CHECK_EQ(choose_lora_linear_pack_config(2, 64, 0, 64, 0, 72).vector, 8);
  CHECK_EQ(choose_lora_linear_pack_config(4, 64, 16, 64, 32, 68).vector, 4);
  CHECK_EQ(choose_lora_linear_pack_config(2, 60, 0, 64, 0, 72).vector, 1);  // in_features
  CHECK_EQ(choose_lora_linear_pack_config(2, 64, 2, 64, 0, 72).vector, 1);  // address of x
  CHECK_EQ(choose_lora_linear_pack_config(2, 64, 0, 65, 0, 72).vector, 1);  // stride of x
  CHECK_EQ(choose_lora_linear_pack_config(2, 64, 0, 64, 8, 72).vector, 1);  // address of the output
  CHECK_EQ(choose_lora_linear_pack_config(2, 64, 0, 64, 0, 70).vector, 1);  // stride of the output
}
