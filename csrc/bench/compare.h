// Candidates timed in turn, in one process, so that all of them see the same machine.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "stats.h"
#include "timer.h"

namespace refiners::bench {

struct Candidate {
  std::string name;
  std::function<void()> run;
};

// When to stop: every candidate has run `min_rounds` times and for `min_time` seconds, or `max_rounds` times.
struct Plan {
  double min_time = 0.5;
  int warmup_rounds = 1;
  int min_rounds = 5;
  int max_rounds = 1000;
};

struct Measurement {
  std::string name;
  Summary wall;      // seconds
  Summary cpu;       // seconds
  double ratio = 1;  // median over the rounds of wall time / wall time of the first candidate in that round
};

// Times every candidate once a round, `before_each` (a cache flush, say) untimed before each call. Round i begins with
// candidate i modulo their number, so that none always follows the same neighbour. The first candidate is the baseline.
// Throws std::invalid_argument if there is no candidate or the plan allows no round.
std::vector<Measurement> compare(std::span<const Candidate> candidates, Stopwatch& stopwatch, const Plan& plan,
                                 const std::function<void()>& before_each);

}  // namespace refiners::bench
