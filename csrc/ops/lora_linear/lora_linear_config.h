// The choices of lora_linear: how it is computed, and with which tiles. Pure host functions, tested without a GPU.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

enum class LoraLinearPlan : int {
  kPortable,  // torch's functions one by one
  kUpdate,    // the library's linear, then own kernels: d = scale · x·Aᵀ and y += d·Bᵀ, in float32
  kLibrary,   // the library's linear, then its multiplications: d = x·Aᵀ, scaled by an own kernel, and y += d·Bᵀ
  kBlock,     // one library multiplication of depth in + rank: [x | d] · [W | B]ᵀ
};

constexpr const char* kLoraLinearPlanNames[] = {"portable", "update", "library", "block"};

struct LoraLinearChoice {
  LoraLinearPlan plan;
  const char* reason;
};

// The plan on a CPU that uses `isa`. The library multiplies bfloat16 fast only with instructions for it; with them own
// float32 kernels would cost more than the library's multiplications, without them far less.
inline LoraLinearChoice choose_lora_linear_cpu_plan(CpuIsa isa, const CpuFeatures& features, Dtype dtype,
                                                    bool has_block) {
  if (dtype == Dtype::kOther) return {LoraLinearPlan::kPortable, "no kernel for this dtype"};
  if (isa == CpuIsa::kPortable) return {LoraLinearPlan::kPortable, "no instruction set with a kernel is in use"};
  if (dtype == Dtype::kFloat32) return {LoraLinearPlan::kUpdate, "a fused float32 update passes over the output once"};
  if (!library_multiplies_fast(isa, features, dtype))
    return {LoraLinearPlan::kUpdate, "the library has no fast 16-bit multiplication with these instructions"};
  if (has_block) return {LoraLinearPlan::kBlock, "the library multiplies 16-bit numbers fast"};
  return {LoraLinearPlan::kLibrary, "the library multiplies 16-bit numbers fast, and no block was given"};
}

constexpr int kLoraLinearMaxCudaAdapters = 32;

// The plan on a CUDA device.
inline LoraLinearChoice choose_lora_linear_cuda_plan(Dtype dtype, int64_t adapters, bool has_block) {
  if (dtype == Dtype::kOther) return {LoraLinearPlan::kPortable, "no kernel for this dtype"};
  if (adapters > kLoraLinearMaxCudaAdapters) return {LoraLinearPlan::kPortable, "more than 32 adapters"};
  if (has_block) return {LoraLinearPlan::kBlock, "one multiplication does layer and updates"};
  return {LoraLinearPlan::kLibrary, "no block was given"};
}

constexpr int64_t kLoraLinearFewRows = 4;  // up to here the CPU kernels read A and B as they lie

// Tiles of the CPU kernels for more rows.
struct LoraLinearCpuConfig {
  int64_t row_block = 48;      // rows that pass through both kernels while their d stays in the L1 cache
  int64_t depth_block = 256;   // of x and A at a time: 16 columns of A take 16 KiB
  int64_t right_block = 6144;  // floats of B at a time: 24 KiB
};

constexpr LoraLinearCpuConfig kLoraLinearCpuConfig{};

// How the CUDA kernel moves x: elements at once, and warps (rows) in a thread block.
struct LoraLinearPackConfig {
  int vector;
  int rows_per_block;
};

// `x` and `out` are addresses, strides are in elements. A vector is 16 bytes wherever all rows start on 16 bytes.
inline LoraLinearPackConfig choose_lora_linear_pack_config(int64_t element_size, int64_t in_features, uint64_t x,
                                                           int64_t x_stride, uint64_t out, int64_t out_stride) {
  const int64_t vector = 16 / element_size;
  const bool aligned =
      x % 16 == 0 && out % 16 == 0 && x_stride % vector == 0 && out_stride % vector == 0 && in_features % vector == 0;
  return {aligned ? static_cast<int>(vector) : 1, 8};
}

}  // namespace refiners
