// The CPU kernels of attention: parameters, and a table of them for each instruction set. Knows neither torch nor
// Python.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

// [batch, tokens, heads · features]: the heads are consecutive parts of rows without gaps between elements.
struct AttentionRows {
  const void* data;  // null: there are none
  int64_t batch_stride, row_stride;
};

// What is added to scores: [samples, heads, queries, keys] with a stride of 0 for what is the same everywhere.
struct AttentionBias {
  const void* data;  // null: there is none
  bool is_bool;      // else in the dtype of the queries; false stands for -∞, true for 0
  int64_t samples;   // sample b has the bias b % samples
  int64_t sample_stride, head_stride, query_stride, key_stride;  // the last one is 0 or 1
};

// Keys and values, with a softmax of their own.
struct AttentionSet {
  int64_t keys;
  AttentionRows key, value;
  AttentionBias biases[2];
};

struct AttentionParams {
  Dtype dtype;
  int64_t batch, heads, queries, features, value_features;  // features: of one head
  int64_t query_block;                                      // queries of a task
  bool takes_turns;  // the tasks of a block of queries follow each other, else those of a head; few keys, few heads
  AttentionRows query;
  float scale;
  bool is_causal;  // in the first set: query i sees the keys 0 to i
  AttentionSet sets[2];
  int64_t set_count;
  const float* second_scale;  // of the result of the second set, one for each sample at this stride
  int64_t second_scale_stride;
  AttentionBias row_bias, column_bias;  // of the first set, whose keys are a grid: [samples, heads, queries, rows]
  int64_t columns;                      // key k is in row k / columns, column k % columns; 1 without such biases
  void* y;                              // [batch, queries, heads · value features]
  int64_t y_batch_stride, y_row_stride;
};

struct AttentionCpuKernels {
  // Floats that one thread needs.
  int64_t (*scratch_size)(const AttentionParams&);

  // The tasks [begin, end): a task is a block of queries of one head. Where they are cut changes nothing in the result.
  void (*compute)(const AttentionParams&, int64_t begin, int64_t end, float* scratch);
};

const AttentionCpuKernels& attention_avx2_kernels();
const AttentionCpuKernels& attention_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const AttentionCpuKernels* attention_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &attention_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &attention_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
