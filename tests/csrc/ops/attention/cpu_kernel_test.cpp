// The CPU kernels of attention against the formula in float64, for every instruction set that this machine has, and
// for vectors of 16 in plain C++.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "matrix.h"
#include "ops/attention/attention_config.h"
#include "ops/attention/attention_cpu_kernel.h"
#include "ops/attention/attention_simd.h"
#include "wide_vector.h"

using namespace refiners;

namespace {

struct Sizes {
  std::int64_t batch, heads, queries, keys, second_keys, features, value_features;
};

// Few keys and many; more than a block in each direction; nothing divides.
const std::vector<Sizes> kCases = {{1, 1, 1, 1, 1, 1, 1},      {2, 3, 100, 77, 4, 40, 40}, {1, 2, 13, 300, 16, 33, 7},
                                   {2, 1, 97, 513, 0, 17, 50}, {1, 1, 7, 20, 0, 200, 160}, {3, 2, 49, 49, 0, 32, 32}};

std::vector<const AttentionCpuKernels*> kernels() {
  static constexpr AttentionCpuKernels wide = make_attention_kernels<Wide>();
  std::vector<const AttentionCpuKernels*> found = {&wide};
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    const auto* table = attention_cpu_kernels(isa);
    if (table != nullptr && isa <= best_cpu_isa(cpu_features())) found.push_back(table);
  }
  return found;
}

// Rows of all samples under each other, with gaps behind them.
struct Problem {
  Problem(Dtype dtype, const Sizes& s, bool is_causal, bool has_bias)
      : sizes(s),
        query(dtype, s.batch * s.queries, s.heads * s.features, random),
        key(dtype, s.batch * s.keys, s.heads * s.features, random),
        value(dtype, s.batch * s.keys, s.heads * s.value_features, random),
        second_key(dtype, s.batch * s.second_keys, s.heads * s.features, random),
        second_value(dtype, s.batch * s.second_keys, s.heads * s.value_features, random),
        bias(dtype, s.heads * s.queries, s.keys, random),
        y(dtype, s.batch * s.queries, s.heads * s.value_features, random),
        before(y),
        second_scale(static_cast<std::size_t>(s.batch), 0.6f) {
    params.dtype = dtype;
    params.batch = s.batch;
    params.heads = s.heads;
    params.queries = s.queries;
    params.features = s.features;
    params.value_features = s.value_features;
    params.query_block = choose_attention_query_block(s.batch * s.heads, s.queries);
    params.query = rows(query, s.queries);
    params.scale = 0.2f;
    params.is_causal = is_causal;
    params.sets[0] = {s.keys, rows(key, s.keys), rows(value, s.keys), {}};
    if (has_bias) params.sets[0].biases[0] = {bias.data(), false, 1, 0, s.queries * bias.stride(), bias.stride(), 1};
    params.sets[1] = {s.second_keys, rows(second_key, s.second_keys), rows(second_value, s.second_keys), {}};
    params.set_count = s.second_keys == 0 ? 1 : 2;
    params.second_scale = second_scale.data();
    params.second_scale_stride = 1;
    params.columns = 1;
    params.y = y.data();
    params.y_batch_stride = s.queries * y.stride();
    params.y_row_stride = y.stride();
  }

  static AttentionRows rows(Matrix& x, std::int64_t tokens) { return {x.data(), tokens * x.stride(), x.stride()}; }

  // In parts of so many tasks, as several threads would take them.
  void run(const AttentionCpuKernels& table, std::int64_t part) {
    std::vector<float> scratch(static_cast<std::size_t>(table.scratch_size(params)));
    const std::int64_t blocks = (sizes.queries + params.query_block - 1) / params.query_block;
    const std::int64_t tasks = sizes.batch * sizes.heads * blocks;
    for (std::int64_t i = 0; i < tasks; i += part) {
      std::fill(scratch.begin(), scratch.end(), std::numeric_limits<float>::quiet_NaN());
      table.compute(params, i, std::min(i + part, tasks), scratch.data());
    }
  }

  // One element of the result of one set.
  double attend(const Matrix& keys, const Matrix& values, std::int64_t count, bool is_first, std::int64_t b,
                std::int64_t h, std::int64_t q, std::int64_t f) const {
    std::vector<double> scores;
    const std::int64_t seen = is_first && params.is_causal ? std::min(count, q + 1) : count;
    for (std::int64_t k = 0; k < seen; ++k) {
      double score = is_first && params.sets[0].biases[0].data != nullptr ? bias.at(h * sizes.queries + q, k) : 0;
      for (std::int64_t i = 0; i < sizes.features; ++i) {
        const std::int64_t column = h * sizes.features + i;
        score += double{params.scale} * query.at(b * sizes.queries + q, column) * keys.at(b * count + k, column);
      }
      scores.push_back(score);
    }
    double sum = 0, total = 0;
    for (std::size_t k = 0; k < scores.size(); ++k) {
      const double weight = std::exp(scores[k]);
      sum += weight;
      total += weight * values.at(b * count + static_cast<std::int64_t>(k), h * sizes.value_features + f);
    }
    return total / sum;
  }

  double error() const {
    double error = 0, norm = 0;
    for (std::int64_t b = 0; b < sizes.batch; ++b) {
      for (std::int64_t h = 0; h < sizes.heads; ++h) {
        for (std::int64_t q = 0; q < sizes.queries; ++q) {
          for (std::int64_t f = 0; f < sizes.value_features; f += 3) {
            double expected = attend(key, value, sizes.keys, true, b, h, q, f);
            if (params.set_count > 1) {
              expected += double{0.6f} * attend(second_key, second_value, sizes.second_keys, false, b, h, q, f);
            }
            error += std::pow(y.at(b * sizes.queries + q, h * sizes.value_features + f) - expected, 2);
            norm += expected * expected;
          }
        }
      }
    }
    return std::sqrt(error / norm);
  }

  bool gaps_are_untouched() const {
    for (std::int64_t r = 0; r < sizes.batch * sizes.queries; ++r) {
      for (std::int64_t c = sizes.heads * sizes.value_features; c < y.stride(); ++c) {
        if (y.at(r, c) != before.at(r, c)) return false;
      }
    }
    return true;
  }

  bool equals(const Problem& other) const {
    for (std::int64_t r = 0; r < sizes.batch * sizes.queries; ++r) {
      for (std::int64_t c = 0; c < sizes.heads * sizes.value_features; ++c) {
        if (y.at(r, c) != other.y.at(r, c)) return false;
      }
    }
    return true;
  }

  std::mt19937 random{1};
  Sizes sizes;
  Matrix query, key, value, second_key, second_value, bias, y, before;
  std::vector<float> second_scale;
  AttentionParams params{};
};

}  // namespace

TEST(the_kernels_match_the_formula) {
  for (const auto* table : kernels()) {
    for (const Sizes& sizes : kCases) {
      for (const bool is_causal : {false, true}) {
        for (const bool has_bias : {false, true}) {
          for (const bool takes_turns : {false, true}) {
            Problem problem(Dtype::kFloat32, sizes, is_causal, has_bias);
            problem.params.takes_turns = takes_turns;
            problem.run(*table, 1000);
            CHECK_NEAR(problem.error(), 0, 1e-6);
            CHECK(problem.gaps_are_untouched());
          }
          Problem narrow(Dtype::kBfloat16, sizes, is_causal, has_bias);
          narrow.run(*table, 1000);
          CHECK_NEAR(narrow.error(), 0,
                     one_rounding(sizes.batch * sizes.queries * sizes.heads * sizes.value_features / 3));
          CHECK(narrow.gaps_are_untouched());
        }
      }
    }
  }
}

TEST(the_result_does_not_depend_on_who_takes_which_task) {
  for (const auto* table : kernels()) {
    for (const Sizes& sizes : kCases) {
      for (const bool is_causal : {false, true}) {
        Problem whole(Dtype::kFloat32, sizes, is_causal, true), parts(Dtype::kFloat32, sizes, is_causal, true);
        parts.params.takes_turns = true;
        parts.params.query_block = 36;
        whole.run(*table, 1000);
        parts.run(*table, 2);
        CHECK(whole.equals(parts));
      }
    }
  }
}

TEST(more_keys_than_stay_in_memory_are_laid_out_again) {
  for (const auto* table : kernels()) {
    const Sizes sizes{1, 2, 30, 9000, 0, 300, 250};
    CHECK(sizes.keys * (sizes.features + sizes.value_features) > kAttentionCpuConfig.resident);
    Problem problem(Dtype::kFloat32, sizes, false, false);
    problem.run(*table, 1000);
    CHECK(table->scratch_size(problem.params) < kAttentionCpuConfig.resident / 4);
    problem.sizes.queries = 2;  // of the first ones
    problem.sizes.heads = 1;
    CHECK_NEAR(problem.error(), 0, 2e-6);
  }
}

TEST(a_task_takes_fewer_queries_where_there_are_few_heads) {
  CHECK_EQ(choose_attention_query_block(16, 4096), kAttentionCpuConfig.query_block);
  CHECK_EQ(choose_attention_query_block(1, 4096), kAttentionCpuConfig.query_block);
  CHECK_EQ(choose_attention_query_block(1, 1000), 48);
  CHECK_EQ(choose_attention_query_block(1, 77), kAttentionCpuConfig.small_query_block);
  CHECK_EQ(choose_attention_query_block(256, 49), kAttentionCpuConfig.query_block);
}

TEST(heads_take_turns_where_the_keys_of_all_stay) {
  CHECK(choose_attention_turns(8, 77 * 80));
  CHECK(!choose_attention_turns(8, 4096 * 80));
  CHECK(!choose_attention_turns(kAttentionCpuConfig.max_heads + 1, 1));
}
