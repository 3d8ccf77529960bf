// The CPU kernels of linear against the formula in float64, for every instruction set that this machine has, and
// for vectors of 16 in plain C++.
#include "ops/linear/linear_cpu_kernel.h"

#include <cmath>
#include <vector>

#include "check.h"
#include "matrix.h"
#include "ops/linear/linear_config.h"
#include "ops/linear/linear_simd.h"
#include "wide_vector.h"

using namespace refiners;

namespace {

struct Sizes {
  std::int64_t rows, in, out;
};

// Few rows and many; more than a block in each direction; nothing divides.
const std::vector<Sizes> kCases = {{1, 1, 1},     {2, 320, 64}, {3, 33, 17},    {4, 257, 70},
                                   {12, 256, 32}, {7, 33, 17},  {193, 31, 129}, {49, 600, 300}};

std::vector<const LinearCpuKernels*> kernels() {
  static constexpr LinearCpuKernels wide = make_linear_kernels<Wide>();
  std::vector<const LinearCpuKernels*> found = {&wide};
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    const auto* table = linear_cpu_kernels(isa);
    if (table != nullptr && isa <= best_cpu_isa(cpu_features())) found.push_back(table);
  }
  return found;
}

struct Problem {
  Problem(const Sizes& s, bool transposed, bool has_bias)
      : sizes(s),
        x(Dtype::kBfloat16, s.rows, s.in, random),
        weight(Dtype::kBfloat16, transposed ? s.in : s.out, transposed ? s.out : s.in, random),
        bias(Dtype::kBfloat16, 1, s.out, random),
        y(Dtype::kBfloat16, s.rows, s.out, random),
        before(y),
        is_transposed(transposed) {
    params = {Dtype::kBfloat16,
              s.rows,
              s.in,
              s.out,
              x.data(),
              x.stride(),
              weight.data(),
              transposed ? 1 : weight.stride(),
              transposed ? weight.stride() : 1,
              has_bias ? bias.data() : nullptr,
              y.data(),
              y.stride()};
  }

  // In tiles of a size that divides nothing, or, for a few rows, in two parts.
  void run(const LinearCpuKernels& table, std::int64_t height, std::int64_t width) {
    std::vector<float> scratch(static_cast<std::size_t>(table.scratch_size(height, width)));
    for (std::int64_t r = 0; r < sizes.rows; r += height) {
      for (std::int64_t c = 0; c < sizes.out; c += width) {
        table.compute(params, {r, std::min(height, sizes.rows - r), c, std::min(width, sizes.out - c)}, scratch.data());
      }
    }
  }

  double error() const {
    double error = 0, norm = 0;
    for (std::int64_t r = 0; r < sizes.rows; ++r) {
      for (std::int64_t c = 0; c < sizes.out; ++c) {
        double sum = params.bias == nullptr ? 0 : bias.at(0, c);
        for (std::int64_t i = 0; i < sizes.in; ++i)
          sum += x.at(r, i) * (is_transposed ? weight.at(i, c) : weight.at(c, i));
        error += std::pow(y.at(r, c) - sum, 2);
        norm += sum * sum;
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

  bool equals(const Problem& other) const {
    for (std::int64_t r = 0; r < sizes.rows; ++r) {
      for (std::int64_t c = 0; c < sizes.out; ++c) {
        if (y.at(r, c) != other.y.at(r, c)) return false;
      }
    }
    return true;
  }

  std::mt19937 random{1};
  Sizes sizes;
  Matrix x, weight, bias, y, before;
  bool is_transposed;
  LinearParams params{};
};

}  // namespace

TEST(tiles_match_the_formula) {
  for (const auto* table : kernels()) {
    for (const Sizes& sizes : kCases) {
      for (const bool transposed : {false, true}) {
        Problem problem(sizes, transposed, transposed);
        problem.run(*table, 50, 64);
        CHECK_NEAR(problem.error(), 0, one_rounding(sizes.rows * sizes.out));
        CHECK(problem.gaps_are_untouched());
      }
    }
  }
}

TEST(the_result_does_not_depend_on_the_tiles) {
  for (const auto* table : kernels()) {
    Problem whole({49, 600, 300}, false, true);
    Problem tiles({49, 600, 300}, false, true);
    whole.run(*table, 49, 320);
    tiles.run(*table, 5, 32);
    CHECK(whole.equals(tiles));
  }
}

TEST(few_rows_match_the_formula) {
  for (const auto* table : kernels()) {
    for (const Sizes& sizes : kCases) {
      if (sizes.rows > kLinearFewRows) continue;
      for (const bool has_bias : {false, true}) {
        Problem problem(sizes, false, has_bias);
        table->compute_few_rows(problem.params, 0, sizes.out / 2);
        table->compute_few_rows(problem.params, sizes.out / 2, sizes.out);
        CHECK_NEAR(problem.error(), 0, one_rounding(sizes.rows * sizes.out));
        CHECK(problem.gaps_are_untouched());
      }
    }
  }
}

TEST(tiles_of_columns_suit_the_threads) {
  for (const std::int64_t threads : {1, 2, 7, 64}) {
    for (const std::int64_t rows : {1, 154, 4096}) {
      for (const std::int64_t out : {1, 33, 640, 10240}) {
        const std::int64_t width = choose_linear_columns(rows, out, threads);
        CHECK_EQ(width % kLinearGrain, 0);
        CHECK(width >= kLinearGrain && width <= kLinearCpuConfig.column_block);
      }
    }
  }
  CHECK_EQ(choose_linear_columns(154, 640, 2), 160);  // four tiles for two threads rather than three
}
