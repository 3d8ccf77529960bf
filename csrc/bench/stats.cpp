#include "stats.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace refiners::bench {
namespace {

std::vector<double> sorted_copy(std::span<const double> samples) {
  std::vector<double> sorted(samples.begin(), samples.end());
  std::ranges::sort(sorted);
  return sorted;
}

}  // namespace

double Summary::spread() const { return median == 0 ? 0 : (upper_quartile - lower_quartile) / median; }

double quantile(std::span<const double> sorted, double q) {
  if (sorted.empty()) throw std::invalid_argument("quantile: expected at least one sample, got none");
  if (!(q >= 0 && q <= 1)) throw std::invalid_argument("quantile: q must be in [0, 1], got " + std::to_string(q));
  if (!std::ranges::is_sorted(sorted)) throw std::invalid_argument("quantile: the samples must be sorted");
  const double position = q * static_cast<double>(sorted.size() - 1);
  const auto lower = static_cast<std::size_t>(position);
  const auto upper = std::min(lower + 1, sorted.size() - 1);
  return std::lerp(sorted[lower], sorted[upper], position - static_cast<double>(lower));
}

Summary summarize(std::span<const double> samples) {
  if (samples.empty()) throw std::invalid_argument("summarize: expected at least one sample, got none");
  const auto sorted = sorted_copy(samples);
  return {sorted.front(),         quantile(sorted, 0.25), quantile(sorted, 0.5),
          quantile(sorted, 0.75), sorted.back(),          sorted.size()};
}

double median_ratio(std::span<const double> samples, std::span<const double> baseline) {
  if (samples.size() != baseline.size()) {
    throw std::invalid_argument("median_ratio: expected as many samples as baselines, got " +
                                std::to_string(samples.size()) + " and " + std::to_string(baseline.size()));
  }
  std::vector<double> ratios;
  ratios.reserve(samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (!(baseline[i] > 0)) throw std::invalid_argument("median_ratio: every baseline must be positive");
    ratios.push_back(samples[i] / baseline[i]);
  }
  return summarize(ratios).median;
}

}  // namespace refiners::bench
