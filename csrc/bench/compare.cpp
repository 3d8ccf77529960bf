#include "compare.h"

#include <algorithm>
#include <stdexcept>

namespace refiners::bench {
namespace {

struct Samples {
  std::vector<double> wall;
  std::vector<double> cpu;
  double total = 0;
};

bool is_done(const std::vector<Samples>& samples, int rounds, const Plan& plan) {
  if (rounds >= plan.max_rounds) return true;
  if (rounds < plan.min_rounds) return false;
  return std::ranges::all_of(samples, [&](const Samples& s) { return s.total >= plan.min_time; });
}

void run_round(std::span<const Candidate> candidates, std::size_t first, Stopwatch& stopwatch,
               const std::function<void()>& before_each, std::vector<Samples>& samples) {
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const std::size_t which = (first + i) % candidates.size();
    before_each();
    const Elapsed elapsed = stopwatch.time(candidates[which].run);
    samples[which].wall.push_back(elapsed.wall);
    samples[which].cpu.push_back(elapsed.cpu);
    samples[which].total += elapsed.wall;
  }
}

}  // namespace

std::vector<Measurement> compare(std::span<const Candidate> candidates, Stopwatch& stopwatch, const Plan& plan,
                                 const std::function<void()>& before_each) {
  if (candidates.empty()) throw std::invalid_argument("compare: expected at least one candidate, got none");
  if (plan.max_rounds < 1) throw std::invalid_argument("compare: max_rounds must be at least 1");
  for (int round = 0; round < plan.warmup_rounds; ++round) {
    for (const Candidate& candidate : candidates) candidate.run();
  }
  std::vector<Samples> samples(candidates.size());
  for (int round = 0; round == 0 || !is_done(samples, round, plan); ++round) {
    run_round(candidates, static_cast<std::size_t>(round) % candidates.size(), stopwatch, before_each, samples);
  }
  std::vector<Measurement> measurements;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    measurements.push_back({candidates[i].name, summarize(samples[i].wall), summarize(samples[i].cpu),
                            median_ratio(samples[i].wall, samples[0].wall)});
  }
  return measurements;
}

}  // namespace refiners::bench
