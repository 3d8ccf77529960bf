// The choices of attention: who computes it, and in which blocks. Pure host functions.
#pragma once

#include <cstdint>

#include "../../common/cpu_plan.h"
#include "attention_cpu_kernel.h"

namespace refiners {

inline CpuPlan choose_attention_cpu_plan(CpuIsa isa, const CpuFeatures& features, Dtype dtype) {
  if (library_multiplies_fast(isa, features, dtype)) return {false, "this CPU has 16-bit multiplications"};
  return choose_cpu_plan(isa, dtype, "scores stay in the cache, keys are laid out once for all queries");
}

struct AttentionCpuConfig {
  int64_t query_block = 96;        // a multiple of the micro-kernel's rows in all instruction sets
  int64_t key_block = 256;         // scores of a block: 96 KiB, of the L2 cache
  int64_t depth_block = 160;       // features that are summed at once
  int64_t resident = 1 << 22;      // floats: up to here all keys and values of a head stay laid out
  int64_t all_resident = 1 << 18;  // up to here those of all heads of a sample
  int64_t max_heads = 64;          // that take turns
  int64_t tasks = 16;              // with fewer than so many, the blocks of queries are smaller
  int64_t small_query_block = 24;
};

constexpr AttentionCpuConfig kAttentionCpuConfig{};

// How many queries of a head a task takes. It knows no number of threads, so that the result does not either.
constexpr int64_t choose_attention_query_block(int64_t heads_in_batch, int64_t queries) {
  int64_t block = kAttentionCpuConfig.query_block;
  while (block > kAttentionCpuConfig.small_query_block &&
         heads_in_batch * ((queries + block - 1) / block) < kAttentionCpuConfig.tasks) {
    block /= 2;
  }
  return block;
}

// Whether the heads of a sample take turns at each block of queries, which are then close to each other in memory:
// where keys and values are so few that those of all heads stay.
constexpr bool choose_attention_turns(int64_t heads, int64_t floats_of_head) {
  return heads <= kAttentionCpuConfig.max_heads && heads * floats_of_head <= kAttentionCpuConfig.all_resident;
}

}  // namespace refiners
