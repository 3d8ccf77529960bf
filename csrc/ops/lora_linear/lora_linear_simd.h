// The CPU kernels of lora_linear, written once over the vectors of common/vec.h: the table of an instruction set.
#pragma once

#include "lora_linear_few_rows.h"
#include "lora_linear_many_rows.h"

namespace refiners {
namespace {

// All kernels for a dtype.
template <class V, class T>
struct LoraLinear : LoraLinearManyRows<V, T> {
  static void project_few_rows(const LoraLinearParams& p, int64_t begin, int64_t end, float* d) {
    with_constant_rows<kLoraLinearFewRows>(
        p.rows, [&]<int kCount>() { LoraLinearFewRows<V, T, kCount>::project(p, begin, end, d); });
  }

  static void update_few_rows(const LoraLinearParams& p, int64_t begin, int64_t end, const float* d) {
    with_constant_rows<kLoraLinearFewRows>(
        p.rows, [&]<int kCount>() { LoraLinearFewRows<V, T, kCount>::update(p, begin, end, d); });
  }
};

// Calls the member of LoraLinear<V, T> for the dtype of the parameters.
#define REFINERS_FOR_DTYPE(V, p, expression)   \
  switch ((p).dtype) {                         \
    case Dtype::kFloat32: {                    \
      using Kernels = LoraLinear<V, float>;    \
      expression;                              \
      break;                                   \
    }                                          \
    case Dtype::kBfloat16: {                   \
      using Kernels = LoraLinear<V, Bfloat16>; \
      expression;                              \
      break;                                   \
    }                                          \
    case Dtype::kFloat16: {                    \
      using Kernels = LoraLinear<V, Float16>;  \
      expression;                              \
      break;                                   \
    }                                          \
    case Dtype::kOther:                        \
      break;                                   \
  }

template <class V>
constexpr LoraLinearCpuKernels make_lora_linear_kernels() {
  using Any = LoraLinear<V, float>;  // sizes do not depend on the dtype
  return {
      Any::packed_down_size,
      Any::packed_up_size,
      Any::scratch_size,
      [](const LoraLinearParams& p, int64_t b, int64_t e) { REFINERS_FOR_DTYPE(V, p, Kernels::pack_down(p, b, e)) },
      [](const LoraLinearParams& p, int64_t b, int64_t e) { REFINERS_FOR_DTYPE(V, p, Kernels::pack_up(p, b, e)) },
      [](const LoraLinearParams& p, int64_t b, int64_t e, float* s) {
        REFINERS_FOR_DTYPE(V, p, Kernels::update_rows(p, b, e, s))
      },
      [](const LoraLinearParams& p) { return p.rows * LoraLinearFewRows<V, float, 1>::d_stride(p); },
      [](const LoraLinearParams& p, int64_t b, int64_t e, float* d) {
        REFINERS_FOR_DTYPE(V, p, Kernels::project_few_rows(p, b, e, d))
      },
      [](const LoraLinearParams& p, int64_t b, int64_t e, const float* d) {
        REFINERS_FOR_DTYPE(V, p, Kernels::update_few_rows(p, b, e, d))
      },
      [](const LoraLinearPackRowsParams& p, int64_t b, int64_t e) {
        REFINERS_FOR_DTYPE(V, p, Kernels::pack_rows(p, b, e))
      },
  };
}

}  // namespace
}  // namespace refiners
