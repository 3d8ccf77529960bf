// Robust statistics of repeated measurements.
#pragma once

#include <cstddef>
#include <span>

namespace refiners::bench {

// Order statistics only: one preempted run moves a mean, never a median.
struct Summary {
  double best = 0;
  double lower_quartile = 0;
  double median = 0;
  double upper_quartile = 0;
  double worst = 0;
  std::size_t count = 0;

  // The distance between the quartiles, as a share of the median; 0 when the median is.
  double spread() const;
};

// The value below which the share `q` (in [0, 1]) of the samples lies, interpolated between neighbours. The samples
// must be sorted; throws std::invalid_argument if they are not, if there are none, or if q is out of range.
double quantile(std::span<const double> sorted, double q);

// Throws std::invalid_argument if there is no sample.
Summary summarize(std::span<const double> samples);

// The median of samples[i] / baseline[i]. Both were measured in round i, so a slow moment of the machine cancels.
// Throws std::invalid_argument if the counts differ or are 0, or if a baseline is not positive.
double median_ratio(std::span<const double> samples, std::span<const double> baseline);

}  // namespace refiners::bench
