// The CPU kernel of weighted_sum, written once over the vectors of common/vec.h.
//
// Computes   y[i] = Σₜ factorₜ · xₜ[i]
// Layout     flat; each tensor with a dtype of its own; any sizes.
// Numerics   the first product, then fused multiply-adds in the order of the terms, in float32, rounded once. The bits
// of
//            an element do not depend on its position, thus not on the threads.
#pragma once

#include "../../common/vec.h"
#include "weighted_sum_cpu_kernel.h"

namespace refiners {
namespace {

constexpr int kWeightedSumUnroll = 4;  // vectors for each look at a dtype

// sums (+)= factor · x, for some vectors, or for the first `count` elements of one.
template <class V, int kVectors, class T>
inline void add_term(const T* x, float factor, bool is_first, int64_t count, typename V::Reg (&sums)[kVectors]) {
  const typename V::Reg scale = V::set(factor);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const typename V::Reg value = kVectors == 1 && count < V::kWidth ? load_partial<V>(x, count)  //
                                                                     : V::load(x + v * V::kWidth);
    sums[v] = is_first ? V::mul(scale, value) : V::fma(scale, value, sums[v]);
  }
}

template <class V, int kVectors, class T>
inline void store_sums(T* y, int64_t count, const typename V::Reg (&sums)[kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    if (kVectors == 1 && count < V::kWidth) {
      store_partial<V>(y, sums[v], count);
    } else {
      V::store(y + v * V::kWidth, sums[v]);
    }
  }
}

template <class V, int kVectors>
inline void compute_sums(const WeightedSumParams& p, int64_t i, int64_t count) {
  typename V::Reg sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = V::zero();
  for (int t = 0; t < p.terms; ++t) {
    const void* x = p.tensors[t];
    const float factor = p.factors[t];
    if (p.dtypes[t] == Dtype::kFloat32) {
      add_term<V>(static_cast<const float*>(x) + i, factor, t == 0, count, sums);
    } else if (p.dtypes[t] == Dtype::kBfloat16) {
      add_term<V>(static_cast<const Bfloat16*>(x) + i, factor, t == 0, count, sums);
    } else {
      add_term<V>(static_cast<const Float16*>(x) + i, factor, t == 0, count, sums);
    }
  }
  if (p.y_dtype == Dtype::kFloat32) {
    store_sums<V>(static_cast<float*>(p.y) + i, count, sums);
  } else if (p.y_dtype == Dtype::kBfloat16) {
    store_sums<V>(static_cast<Bfloat16*>(p.y) + i, count, sums);
  } else {
    store_sums<V>(static_cast<Float16*>(p.y) + i, count, sums);
  }
}

template <class V>
inline void compute_weighted_sum(const WeightedSumParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = kWeightedSumUnroll * V::kWidth;
  int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) compute_sums<V, kWeightedSumUnroll>(p, i, kBlock);
  for (; i < end; i += V::kWidth) compute_sums<V, 1>(p, i, end - i);
}

template <class V>
constexpr WeightedSumCpuKernels make_weighted_sum_kernels() {
  return {[](const WeightedSumParams& p, int64_t begin, int64_t end) { compute_weighted_sum<V>(p, begin, end); }};
}

}  // namespace
}  // namespace refiners
