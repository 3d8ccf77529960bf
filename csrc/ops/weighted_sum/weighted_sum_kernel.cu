// The kernel of weighted_sum for CUDA, sm_80 and newer: one launch, factors among its parameters.
//
// Computes   y[i] = Σₜ factorₜ · xₜ[i]
// Layout     flat; each tensor with a dtype of its own; any sizes.
// Mapping    eight elements for each thread where all tensors start on 16 bytes, else one; the loads of all terms are
// in
//            flight before the first sum.
// Numerics   the first product, then fused multiply-adds in the order of the terms, in fp32, rounded once; bitwise
//            deterministic.

#include "../../common/cuda/load.cuh"
#include "weighted_sum_kernel.h"

namespace refiners {
namespace {

constexpr int kThreads = 128;

// Elements as they lie in memory: a word each, or half of one.
template <int kVector>
struct Raw {
  uint32_t words[kVector];
};

__device__ inline Raw<1> load(const void* x, Dtype dtype, int64_t i, Raw<1>) {
  return {dtype == Dtype::kFloat32 ? static_cast<const uint32_t*>(x)[i] : static_cast<const uint16_t*>(x)[i]};
}

__device__ inline Raw<8> load(const void* x, Dtype dtype, int64_t i, Raw<8>) {
  const bool is_wide = dtype == Dtype::kFloat32;
  const uint4* from = static_cast<const uint4*>(x) + i / (is_wide ? 4 : 8);
  const uint4 low = from[0], high = is_wide ? from[1] : uint4{};
  return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
}

template <int kVector>
__device__ inline float element(const Raw<kVector>& raw, Dtype dtype, int j) {
  if (dtype == Dtype::kFloat32) return __uint_as_float(raw.words[j]);
  const uint32_t half = raw.words[j / 2] >> (j % 2 * 16) & 0xffff;
  if (dtype == Dtype::kBfloat16) return __uint_as_float(half << 16);
  return to_float(__ushort_as_half(static_cast<uint16_t>(half)));
}

__device__ inline uint32_t to_half_bits(float value, Dtype dtype) {
  return dtype == Dtype::kBfloat16 ? __bfloat16_as_ushort(from_float<__nv_bfloat16>(value))
                                   : __half_as_ushort(from_float<__half>(value));
}

__device__ inline void store(void* y, Dtype dtype, int64_t i, const float (&sums)[1]) {
  if (dtype == Dtype::kFloat32) {
    static_cast<float*>(y)[i] = sums[0];
  } else {
    static_cast<uint16_t*>(y)[i] = static_cast<uint16_t>(to_half_bits(sums[0], dtype));
  }
}

__device__ inline void store(void* y, Dtype dtype, int64_t i, const float (&sums)[8]) {
  if (dtype == Dtype::kFloat32) {
    float4* to = static_cast<float4*>(y) + i / 4;
    to[0] = {sums[0], sums[1], sums[2], sums[3]};
    to[1] = {sums[4], sums[5], sums[6], sums[7]};
    return;
  }
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) words[w] = to_half_bits(sums[2 * w], dtype) | to_half_bits(sums[2 * w + 1], dtype) << 16;
  static_cast<uint4*>(y)[i / 8] = {words[0], words[1], words[2], words[3]};
}

// The elements [i, i + kVector).
template <int kVector>
__device__ inline void compute(const WeightedSumParams& p, int64_t i) {
  Raw<kVector> terms[kWeightedSumMaxTerms];
#pragma unroll
  for (int t = 0; t < kWeightedSumMaxTerms; ++t) {
    if (t < p.terms) terms[t] = load(p.tensors[t], p.dtypes[t], i, Raw<kVector>{});
  }
  float sums[kVector] = {};
#pragma unroll
  for (int t = 0; t < kWeightedSumMaxTerms; ++t) {
    if (t < p.terms) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const float value = element(terms[t], p.dtypes[t], j);
        sums[j] = t == 0 ? p.factors[t] * value : fmaf(p.factors[t], value, sums[j]);
      }
    }
  }
  store(p.y, p.y_dtype, i, sums);
}

template <int kVector>
__global__ void __launch_bounds__(kThreads) weighted_sum_kernel(const __grid_constant__ WeightedSumParams p) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (i + kVector <= p.count) {
    compute<kVector>(p, i);
  } else if constexpr (kVector > 1) {
    for (int64_t rest = i; rest < p.count; ++rest) compute<1>(p, rest);
  }
}

template <int kVector>
void launch(const WeightedSumParams& p, cudaStream_t stream) {
  constexpr int64_t kBlock = int64_t{kThreads} * kVector;
  const auto blocks = static_cast<unsigned>((p.count + kBlock - 1) / kBlock);
  weighted_sum_kernel<kVector><<<blocks, kThreads, 0, stream>>>(p);
}

}  // namespace

cudaError_t probe_weighted_sum() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, weighted_sum_kernel<1>);
  cudaGetLastError();  // what fails here is an answer, and must not be found by a later check
  return status;
}

cudaError_t launch_weighted_sum(const WeightedSumParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  if (weighted_sum_is_aligned(p)) {
    launch<kWeightedSumVector>(p, stream);
  } else {
    launch<1>(p, stream);
  }
  return cudaGetLastError();
}

}  // namespace refiners
