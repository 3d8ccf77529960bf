#include "bench/stats.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.h"

using namespace refiners::bench;

TEST(summary_of_an_odd_count_is_exact) {
  const Summary s = summarize(std::vector{5.0, 1.0, 3.0, 2.0, 4.0});
  CHECK_EQ(s.best, 1.0);
  CHECK_EQ(s.lower_quartile, 2.0);
  CHECK_EQ(s.median, 3.0);
  CHECK_EQ(s.upper_quartile, 4.0);
  CHECK_EQ(s.worst, 5.0);
  CHECK_EQ(s.count, 5u);
  CHECK_NEAR(s.spread(), 2.0 / 3.0, 1e-12);
}

TEST(quantiles_are_interpolated) {
  const std::vector sorted{1.0, 2.0, 3.0, 4.0};
  CHECK_NEAR(quantile(sorted, 0.5), 2.5, 1e-12);
  CHECK_NEAR(quantile(sorted, 0.25), 1.75, 1e-12);
  CHECK_EQ(quantile(sorted, 0.0), 1.0);
  CHECK_EQ(quantile(sorted, 1.0), 4.0);
}

TEST(one_sample_is_every_quantile) {
  const Summary s = summarize(std::vector{7.0});
  CHECK_EQ(s.best, 7.0);
  CHECK_EQ(s.median, 7.0);
  CHECK_EQ(s.worst, 7.0);
  CHECK_EQ(s.spread(), 0.0);
}

TEST(median_ignores_an_outlier) { CHECK_EQ(summarize(std::vector{1.0, 1.0, 1.0, 1.0, 1e9}).median, 1.0); }

TEST(spread_of_a_zero_median_is_zero) { CHECK_EQ(summarize(std::vector{0.0, 0.0, 0.0}).spread(), 0.0); }

TEST(median_ratio_pairs_the_rounds) {
  // The machine is ten times slower in the second round, for both: the ratio does not move.
  CHECK_NEAR(median_ratio(std::vector{2.0, 20.0, 2.0}, std::vector{1.0, 10.0, 1.0}), 2.0, 1e-12);
  // Pairing matters: the ratio of the medians would be 2 / 2.
  CHECK_NEAR(median_ratio(std::vector{2.0, 3.0, 1.0}, std::vector{1.0, 2.0, 3.0}), 1.5, 1e-12);
}

TEST(mistakes_are_named) {
  const std::vector<double> none;
  const std::vector sorted{1.0, 2.0};
  const std::vector unsorted{2.0, 1.0};
  const std::vector zeros{0.0, 1.0};
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, summarize(none)), "summarize: expected at least one sample, got none");
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, quantile(none, 0.5)), "quantile: expected at least one sample, got none");
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, quantile(unsorted, 0.5)), "quantile: the samples must be sorted");
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, quantile(sorted, 1.5)), "quantile: q must be in [0, 1], got 1.500000");
  CHECK(!MESSAGE_OF(std::invalid_argument, quantile(sorted, std::nan(""))).empty());
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, median_ratio(sorted, none)),
           "median_ratio: expected as many samples as baselines, got 2 and 0");
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, median_ratio(sorted, zeros)),
           "median_ratio: every baseline must be positive");
}
