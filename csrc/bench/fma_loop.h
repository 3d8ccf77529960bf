// The loop that measures the fp32 multiply-add peak. One source, compiled once per instruction set: fma_<isa>.cpp.
#pragma once

#include <cstdint>

namespace refiners::bench {

using FmaLoop = double (*)(std::int64_t iterations, float multiplier, float addend);

double fma_loop_portable(std::int64_t iterations, float multiplier, float addend);
double fma_loop_avx2(std::int64_t iterations, float multiplier, float addend);
double fma_loop_avx512(std::int64_t iterations, float multiplier, float addend);

// The chains are independent: 12 of them cover a latency of 4 to 5 cycles at two FMA units, and fit in 16 registers.
inline constexpr int kFmaChains = 12;

// Bytes in a vector register.
inline constexpr int kPortableBytes = 16;
inline constexpr int kAvx2Bytes = 32;
inline constexpr int kAvx512Bytes = 64;

template <int kBytes>
struct FmaVector {
  typedef float type __attribute__((vector_size(kBytes)));
};

// The arithmetic of one iteration: a multiply and an add per lane and chain.
constexpr double fma_flops_per_iteration(int vector_bytes) { return 2.0 * (vector_bytes / 4) * kFmaChains; }

// Applies c <- multiplier · c + addend to every chain, from 1. Returns the sum of the chains, so that no compiler may
// drop them. The flags of the file contract the two operations to one instruction.
template <int kBytes>
double run_fma_chains(std::int64_t iterations, float multiplier, float addend) {
  using Vector = typename FmaVector<kBytes>::type;
  const Vector factor = Vector{} + multiplier;
  const Vector term = Vector{} + addend;
  Vector chains[kFmaChains];
  for (int c = 0; c < kFmaChains; ++c) chains[c] = Vector{} + 1.0f;
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kFmaChains; ++c) chains[c] = chains[c] * factor + term;
  }
  double sum = 0;
  for (const Vector& chain : chains) {
    for (int lane = 0; lane < kBytes / 4; ++lane) sum += static_cast<double>(chain[lane]);
  }
  return sum;
}

}  // namespace refiners::bench
