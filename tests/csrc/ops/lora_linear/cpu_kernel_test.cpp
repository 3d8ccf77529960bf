// The CPU kernels against the formula in float64, for every instruction set that this machine has, without torch,
// and for vectors of 16 in plain C++.
#include "ops/lora_linear/lora_linear_cpu_kernel.h"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "matrix.h"
#include "ops/lora_linear/lora_linear_config.h"
#include "ops/lora_linear/lora_linear_simd.h"
#include "wide_vector.h"

using namespace refiners;

namespace {

struct Sizes {
  std::int64_t rows, in, out;
  std::vector<std::int64_t> ranks;
};

// One ordinary case, then edges: nothing divides, single rows and columns, more than a block in each direction, stacks.
const std::vector<Sizes> kCases = {
    {96, 320, 640, {16}}, {7, 33, 17, {3}},    {1, 1, 1, {1}},      {5, 300, 65, {8}},          {131, 31, 129, {5}},
    {2, 64, 32, {64}},    {3, 16, 200, {130}}, {49, 257, 96, {16}}, {10, 40, 24, {4, 0, 9, 1}}, {1, 1280, 6, {128}},
};

std::vector<std::pair<CpuIsa, const LoraLinearCpuKernels*>> kernels() {
  static constexpr LoraLinearCpuKernels wide = make_lora_linear_kernels<Wide>();
  std::vector<std::pair<CpuIsa, const LoraLinearCpuKernels*>> found = {{CpuIsa::kPortable, &wide}};
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    const auto* table = lora_linear_cpu_kernels(isa);
    if (table != nullptr && isa <= best_cpu_isa(cpu_features())) found.emplace_back(isa, table);
  }
  return found;
}

struct Problem {
  Problem(Dtype dtype, const Sizes& s, std::int64_t scale_count)
      : sizes(s), x(dtype, s.rows, s.in, random), y(dtype, s.rows, s.out, random), before(y) {
    std::int64_t rank = 0;
    for (const auto r : s.ranks) {
      downs.emplace_back(dtype, r, s.in, random);
      ups.emplace_back(dtype, s.out, r, random);
      adapters.push_back({nullptr, downs.back().stride(), 1, nullptr, ups.back().stride(), 1, r, rank});
      rank += r;
      for (std::int64_t i = 0; i < scale_count; ++i) scales.push_back(0.25f * static_cast<float>(i % 5) - 0.5f);
    }
    for (std::size_t a = 0; a < adapters.size(); ++a) {
      adapters[a].down = downs[a].data();
      adapters[a].up = ups[a].data();
    }
    params = {dtype,
              s.rows,
              s.in,
              s.out,
              rank,
              x.data(),
              x.stride(),
              y.data(),
              y.stride(),
              adapters.data(),
              static_cast<std::int64_t>(adapters.size()),
              scales.data(),
              scale_count,
              (s.rows + scale_count - 1) / scale_count,
              nullptr,
              nullptr};
  }

  // Packs in two parts and updates the rows in two parts, as two threads would.
  void run(const LoraLinearCpuKernels& table) {
    std::vector<float> down(static_cast<std::size_t>(table.packed_down_size(params)));
    std::vector<float> up(static_cast<std::size_t>(table.packed_up_size(params)));
    std::vector<float> scratch(static_cast<std::size_t>(table.scratch_size(params)));
    params.packed_down = down.data();
    params.packed_up = up.data();
    const std::int64_t middle = sizes.out / 2 / kPackGrain * kPackGrain;
    table.pack_down(params, 0, sizes.in / 2);
    table.pack_down(params, sizes.in / 2, sizes.in);
    if (middle > 0) table.pack_up(params, 0, middle);
    table.pack_up(params, middle, sizes.out);
    table.update_rows(params, 0, sizes.rows / 3, scratch.data());
    table.update_rows(params, sizes.rows / 3, sizes.rows, scratch.data());
  }

  // The kernels for a few rows, each in two parts. What they leave unset of their scratch is not a number.
  void run_few_rows(const LoraLinearCpuKernels& table, std::int64_t rank_part, std::int64_t out_part) {
    std::vector<float> d(static_cast<std::size_t>(table.few_rows_size(params)),
                         std::numeric_limits<float>::quiet_NaN());
    table.project_few_rows(params, 0, rank_part, d.data());
    table.project_few_rows(params, rank_part, params.rank, d.data());
    table.update_few_rows(params, 0, out_part, d.data());
    table.update_few_rows(params, out_part, sizes.out, d.data());
  }

  // y + Σ scale · (x·Aᵀ)·Bᵀ for one row.
  std::vector<double> reference(std::int64_t row) const {
    std::vector<double> sums;
    for (std::int64_t c = 0; c < sizes.out; ++c) sums.push_back(before.at(row, c));
    for (std::size_t a = 0; a < adapters.size(); ++a) {
      const auto first = static_cast<std::int64_t>(a) * params.scale_count;
      for (std::int64_t k = 0; k < adapters[a].rank; ++k) {
        double d = 0;
        for (std::int64_t i = 0; i < sizes.in; ++i) d += x.at(row, i) * downs[a].at(k, i);
        d *= static_cast<double>(params.scale[first + row / params.rows_per_scale]);
        for (std::int64_t c = 0; c < sizes.out; ++c) sums[static_cast<std::size_t>(c)] += d * ups[a].at(c, k);
      }
    }
    return sums;
  }

  // Norm of the error / norm of the result.
  double error() const {
    double error = 0;
    double norm = 0;
    for (std::int64_t r = 0; r < sizes.rows; ++r) {
      const auto row = reference(r);
      for (std::int64_t c = 0; c < sizes.out; ++c) {
        const double expected = row[static_cast<std::size_t>(c)];
        error += std::pow(y.at(r, c) - expected, 2);
        norm += expected * expected;
      }
    }
    return std::sqrt(error / norm);
  }

  bool gaps_are_untouched() const {
    for (std::int64_t r = 0; r < sizes.rows; ++r) {
      for (std::int64_t c = sizes.out; c < sizes.out + Matrix::kGap; ++c) {
        if (y.at(r, c) != before.at(r, c)) return false;
      }
    }
    return true;
  }

  std::mt19937 random{1};
  Sizes sizes;
  Matrix x, y, before;
  std::vector<Matrix> downs, ups;
  std::vector<LoraLinearAdapter> adapters;
  std::vector<float> scales;
  LoraLinearParams params{};
};

double tolerance(Dtype dtype, const Sizes& sizes) {
  return dtype == Dtype::kFloat32 ? 1e-5 : one_rounding(sizes.rows * sizes.out);
}

void check_all(Dtype dtype) {
  for (const auto& [isa, table] : kernels()) {
    for (const Sizes& sizes : kCases) {
      for (const std::int64_t scale_count : {std::int64_t{1}, sizes.rows}) {
        Problem problem(dtype, sizes, scale_count);
        problem.run(*table);
        CHECK_NEAR(problem.error(), 0, tolerance(dtype, sizes));
        CHECK(problem.gaps_are_untouched());
      }
    }
  }
}

}  // namespace

TEST(this_machine_has_kernels_to_test) {
#if defined(REFINERS_AVX2)
  CHECK_EQ(kernels().size() > 1, cpu_features().avx2);  // beside those over vectors of 16
#endif
}

TEST(the_update_matches_the_formula_in_float32) { check_all(Dtype::kFloat32); }

TEST(the_update_is_rounded_once_in_bfloat16) { check_all(Dtype::kBfloat16); }

void check_few_rows(Dtype dtype) {
  for (const auto& [isa, table] : kernels()) {
    for (const Sizes& few : kCases) {
      for (std::int64_t rows = 1; rows <= kLoraLinearFewRows; ++rows) {
        Sizes sizes = few;
        sizes.rows = rows;
        for (const std::int64_t scale_count : {std::int64_t{1}, rows}) {
          Problem problem(dtype, sizes, scale_count);
          problem.run_few_rows(*table, problem.params.rank / 2, sizes.out / 3);
          CHECK_NEAR(problem.error(), 0, tolerance(dtype, sizes));
          CHECK(problem.gaps_are_untouched());
        }
      }
    }
  }
}

TEST(few_rows_match_the_formula_in_float32) { check_few_rows(Dtype::kFloat32); }

TEST(few_rows_are_rounded_once_in_bfloat16) { check_few_rows(Dtype::kBfloat16); }

TEST(the_result_for_few_rows_does_not_depend_on_the_parts) {
  for (const auto& [isa, table] : kernels()) {
    Problem whole(Dtype::kFloat32, {3, 70, 90, {12, 5}}, 1);
    Problem parts(Dtype::kFloat32, {3, 70, 90, {12, 5}}, 1);
    whole.run_few_rows(*table, 0, 0);
    parts.run_few_rows(*table, 7, 41);
    bool equal = true;
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t c = 0; c < 90; ++c) equal = equal && whole.y.at(r, c) == parts.y.at(r, c);
    }
    CHECK(equal);
  }
}

TEST(the_result_does_not_depend_on_the_split_into_rows) {
  for (const auto& [isa, table] : kernels()) {
    Problem whole(Dtype::kFloat32, {101, 70, 90, {12}}, 1);
    Problem split(Dtype::kFloat32, {101, 70, 90, {12}}, 1);
    whole.run(*table);
    std::vector<float> down(static_cast<std::size_t>(table->packed_down_size(split.params)));
    std::vector<float> up(static_cast<std::size_t>(table->packed_up_size(split.params)));
    std::vector<float> scratch(static_cast<std::size_t>(table->scratch_size(split.params)));
    split.params.packed_down = down.data();
    split.params.packed_up = up.data();
    table->pack_down(split.params, 0, 70);
    table->pack_up(split.params, 0, 90);
    for (std::int64_t row = 0; row < 101; ++row) table->update_rows(split.params, row, row + 1, scratch.data());
    bool equal = true;
    for (std::int64_t r = 0; r < 101; ++r) {
      for (std::int64_t c = 0; c < 90; ++c) equal = equal && whole.y.at(r, c) == split.y.at(r, c);
    }
    CHECK(equal);
  }
}

TEST(packed_rows_hold_x_the_scaled_d_and_zeros) {
  for (const auto& [isa, table] : kernels()) {
    std::mt19937 random{2};
    Matrix x(Dtype::kFloat32, 4, 5, random);
    Matrix out(Dtype::kFloat32, 4, 5 + 8, random);
    const Matrix before = out;
    const std::vector<LoraLinearAdapter> adapters = {{nullptr, 0, 0, nullptr, 0, 0, 2, 0},
                                                     {nullptr, 0, 0, nullptr, 0, 0, 1, 2}};
    const std::vector<float> scales = {2, 3, -1, 0.5};  // [adapter, half of the rows]
    const LoraLinearPackRowsParams params{
        Dtype::kFloat32, 4, 5, 3, 8, x.data(), x.stride(), out.data(), out.stride(), adapters.data(), 2,
        scales.data(),   2, 2};
    table->pack_rows(params, 0, 4);
    for (std::int64_t r = 0; r < 4; ++r) {
      for (std::int64_t c = 0; c < 5; ++c) CHECK_EQ(out.at(r, c), x.at(r, c));
      for (std::int64_t k = 0; k < 3; ++k) {
        const float scale = scales[static_cast<std::size_t>(k / 2 * 2 + r / 2)];
        CHECK_EQ(static_cast<float>(out.at(r, 5 + k)), static_cast<float>(before.at(r, 5 + k)) * scale);
      }
      for (std::int64_t k = 3; k < 8; ++k) CHECK_EQ(out.at(r, 5 + k), 0.0);
      CHECK_EQ(out.at(r, 13), before.at(r, 13));
    }
  }
}
