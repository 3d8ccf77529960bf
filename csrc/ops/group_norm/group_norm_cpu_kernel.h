// The CPU kernels of group_norm: parameters, and a table of them for each instruction set. Knows neither torch nor
// Python.
#pragma once

#include <cstdint>

#include "../../common/cpu_features.h"
#include "../../common/dtype.h"

namespace refiners {

// Mean of some elements of a group, and the sum of their squared distances from it.
struct GroupNormCell {
  float mean, squares;
};

struct GroupNormParams {
  Dtype dtype;  // of x and y
  int64_t samples, channels, pixels, groups;
  bool channels_last;  // x and y are [samples, pixels, channels], else [samples, channels, pixels]; no gaps
  const void* x;
  void* y;
  const float* add;      // [samples, channels], added to x first; null: nothing
  bool silu;             // afterwards
  int64_t chunks;        // channels last: into how many parts the pixels of a sample are cut
  GroupNormCell* cells;  // channels last: [samples, chunks, groups], else [samples, channels]
  const float* centre;   // [samples, channels]: y = (x - centre) · factor + offset; a constant group gives the offset
  const float* factor;
  const float* offset;  // [channels]
};

struct GroupNormCpuKernels {
  // Fills the cells of the units [begin, end): chunks of samples, or else channels of samples. `scratch`: 2 · channels.
  void (*measure)(const GroupNormParams&, int64_t begin, int64_t end, float* scratch);

  // y for the rows [begin, end): pixels of samples, or else channels of samples.
  void (*apply)(const GroupNormParams&, int64_t begin, int64_t end);
};

// The pixels of a chunk.
struct GroupNormChunk {
  int64_t first, count;
};

inline GroupNormChunk group_norm_chunk(const GroupNormParams& p, int64_t chunk) {
  const int64_t size = (p.pixels + p.chunks - 1) / p.chunks;
  const int64_t first = chunk * size, rest = p.pixels - first;
  return {first, rest < size ? rest : size};
}

const GroupNormCpuKernels& group_norm_avx2_kernels();
const GroupNormCpuKernels& group_norm_avx512_kernels();

// The kernels for an instruction set; null for the portable one.
inline const GroupNormCpuKernels* group_norm_cpu_kernels([[maybe_unused]] CpuIsa isa) {
#if defined(REFINERS_AVX512)
  if (isa == CpuIsa::kAvx512 || isa == CpuIsa::kAmx) return &group_norm_avx512_kernels();
#endif
#if defined(REFINERS_AVX2)
  if (isa == CpuIsa::kAvx2) return &group_norm_avx2_kernels();
#endif
  return nullptr;
}

}  // namespace refiners
