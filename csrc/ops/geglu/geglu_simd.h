// The CPU kernel of geglu, written once over the vectors of common/vec.h.
//
// Computes   y[r,i] = x[r,i] · GeLU(x[r,n+i]), i in [0, n)
// Source     Shazeer 2020, arXiv:2002.05202, equation 6; GeLU: Hendrycks and Gimpel 2016, arXiv:1606.08415.
// Layout     rows of x and y are contiguous, with any stride between them; any sizes.
// Numerics   float32, rounded once.
#pragma once

#include "../../common/vec_math.h"
#include "geglu_cpu_kernel.h"

namespace refiners {
namespace {

template <class V, class T, bool kTanh>
inline void compute_geglu_row(const T* x, int64_t features, T* y) {
  const auto gate = [](typename V::Reg v) { return kTanh ? gelu_tanh<V>(v) : gelu<V>(v); };
  int64_t i = 0;
  for (; i + V::kWidth <= features; i += V::kWidth) {
    V::store(y + i, V::mul(V::load(x + i), gate(V::load(x + features + i))));
  }
  const int64_t rest = features - i;
  if (rest > 0) {
    const typename V::Reg value = load_partial<V>(x + i, rest);
    store_partial<V>(y + i, V::mul(value, gate(load_partial<V>(x + features + i, rest))), rest);
  }
}

template <class V, class T>
inline void compute_geglu(const GegluParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* y = static_cast<T*>(p.y) + row * p.y_stride;
    if (p.tanh) {
      compute_geglu_row<V, T, true>(x, p.features, y);
    } else {
      compute_geglu_row<V, T, false>(x, p.features, y);
    }
  }
}

template <class V>
constexpr GegluCpuKernels make_geglu_kernels() {
  return {[](const GegluParams& p, int64_t begin, int64_t end) {
    if (p.dtype == Dtype::kFloat32) compute_geglu<V, float>(p, begin, end);
    if (p.dtype == Dtype::kBfloat16) compute_geglu<V, Bfloat16>(p, begin, end);
    if (p.dtype == Dtype::kFloat16) compute_geglu<V, Float16>(p, begin, end);
  }};
}

}  // namespace
}  // namespace refiners
