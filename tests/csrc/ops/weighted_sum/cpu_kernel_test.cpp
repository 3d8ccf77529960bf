// The CPU kernels of weighted_sum against the formula in float64, for every instruction set that this machine has, and
// for vectors of 16 in plain C++.
#include "ops/weighted_sum/weighted_sum_cpu_kernel.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "ops/weighted_sum/weighted_sum_simd.h"
#include "wide_vector.h"

using namespace refiners;

namespace {

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16};
constexpr double kRounding[] = {1.0 / (1 << 24), 1.0 / (1 << 8), 1.0 / (1 << 11)};  // half a unit, of each
constexpr float kFactors[] = {0.75f, -1.5f, 2.0f, 1e-3f, -0.3f, 1.0f};
constexpr std::int64_t kSizes[] = {0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 200};
constexpr std::int64_t kGap = 3;  // elements behind y that must stay

std::vector<const WeightedSumCpuKernels*> kernels() {
  static constexpr WeightedSumCpuKernels wide = make_weighted_sum_kernels<Wide>();
  std::vector<const WeightedSumCpuKernels*> found = {&wide};
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    const auto* table = weighted_sum_cpu_kernels(isa);
    if (table != nullptr && isa <= best_cpu_isa(cpu_features())) found.push_back(table);
  }
  return found;
}

// Elements of a dtype that take no more memory than they need, so that a sanitizer sees what reads beyond them.
class Elements {
 public:
  Elements(Dtype dtype, std::int64_t count, std::mt19937& random) : dtype_(dtype) {
    std::normal_distribution<float> normal;
    (dtype == Dtype::kFloat32 ? wide_.resize(count) : wide_.clear());
    (dtype == Dtype::kFloat32 ? half_.clear() : half_.resize(count));
    for (auto& value : wide_) value = normal(random);
    for (auto& value : half_) {
      const float number = normal(random);
      if (dtype == Dtype::kFloat16) {
        value = _cvtss_sh(number, 0);
      } else {
        std::uint32_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        value = static_cast<std::uint16_t>(bits >> 16);
      }
    }
  }

  void* data() { return dtype_ == Dtype::kFloat32 ? static_cast<void*>(wide_.data()) : half_.data(); }

  double at(std::int64_t i) const {
    if (dtype_ == Dtype::kFloat32) return wide_[i];
    if (dtype_ == Dtype::kFloat16) return _cvtsh_ss(half_[i]);
    const Bfloat16 value{half_[i]};
    return to_float(&value);
  }

 private:
  Dtype dtype_;
  std::vector<float> wide_;
  std::vector<std::uint16_t> half_;
};

struct Problem {
  Problem(std::int64_t count, int terms, Dtype y_dtype) : y(y_dtype, count + kGap, random), before(y) {
    params.count = count;
    params.terms = terms;
    for (int t = 0; t < terms; ++t) tensors.emplace_back(kDtypes[t % 3], count, random);
    for (int t = 0; t < terms; ++t) {
      params.tensors[t] = tensors[t].data();
      params.dtypes[t] = kDtypes[t % 3];
      params.factors[t] = kFactors[t];
    }
    params.y = y.data();
    params.y_dtype = y_dtype;
  }

  // The largest error, in units of what rounding to float32 at each step and once to the result may cost.
  double error() const {
    double worst = 0;
    for (std::int64_t i = 0; i < params.count; ++i) {
      double sum = 0, sizes = 0;
      for (int t = 0; t < params.terms; ++t) {
        const double term = double{params.factors[t]} * tensors[t].at(i);
        sum += term;
        sizes += std::abs(term);
      }
      const double allowed =
          params.terms * kRounding[0] * sizes + std::abs(sum) * kRounding[int(params.y_dtype)] + 1e-7;
      worst = std::max(worst, std::abs(y.at(i) - sum) / allowed);
    }
    return worst;
  }

  bool equals(const Elements& other, std::int64_t begin, std::int64_t end) const {
    for (std::int64_t i = begin; i < end; ++i) {
      if (y.at(i) != other.at(i)) return false;
    }
    return true;
  }

  std::mt19937 random{1};
  std::vector<Elements> tensors;
  Elements y, before;
  WeightedSumParams params{};
};

}  // namespace

TEST(sums_match_the_formula) {
  for (const auto* table : kernels()) {
    for (const std::int64_t count : kSizes) {
      for (int terms = 0; terms <= kWeightedSumMaxTerms; ++terms) {
        for (const Dtype dtype : kDtypes) {
          Problem problem(count, terms, dtype);
          table->compute(problem.params, 0, count);
          CHECK(problem.error() <= 1);
          CHECK(problem.equals(problem.before, count, count + kGap));
        }
      }
    }
  }
}

TEST(the_result_does_not_depend_on_the_parts) {
  for (const auto* table : kernels()) {
    for (const Dtype dtype : kDtypes) {
      Problem whole(200, 4, dtype), parts(200, 4, dtype);
      table->compute(whole.params, 0, 200);
      for (const auto& [begin, end] : {std::pair{0, 3}, {3, 70}, {70, 71}, {71, 200}}) {
        table->compute(parts.params, begin, end);
      }
      CHECK(whole.equals(parts.y, 0, 200));
    }
  }
}

TEST(a_part_writes_nothing_else) {
  for (const auto* table : kernels()) {
    Problem problem(200, 2, Dtype::kBfloat16);
    table->compute(problem.params, 40, 101);
    CHECK(problem.equals(problem.before, 0, 40) && problem.equals(problem.before, 101, 200));
  }
}

TEST(pieces_of_16_bytes_need_every_tensor_to_start_on_16) {
  alignas(16) float memory[12];
  WeightedSumParams p{};
  p.terms = 2;
  p.y = memory;
  p.tensors[0] = p.tensors[1] = memory + 4;
  CHECK(weighted_sum_is_aligned(p));
  p.tensors[1] = memory + 5;
  CHECK(!weighted_sum_is_aligned(p));
  p.terms = 1;  // what is no term does not count
  CHECK(weighted_sum_is_aligned(p));
  p.y = memory + 2;
  CHECK(!weighted_sum_is_aligned(p));
}
