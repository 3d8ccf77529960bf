// The figures of bench_lora_linear, as tables and as JSON.
#pragma once

#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "bench/compare.h"
#include "bench/json.h"
#include "bench/report.h"
#include "lora_linear_torch.h"

namespace refiners::bench {

struct Result {
  LoraLinearProblem problem;
  Ceiling ceiling;
  double difference = 0;
  std::vector<Measurement> measurements;  // bare, lora_linear, separate

  bool is_bare(const Measurement& m) const { return &m == &measurements.front(); }
  double flops_of(const Measurement& m) const { return is_bare(m) ? bare_flops(problem) : flops(problem); }
  double bytes_of(const Measurement& m) const { return is_bare(m) ? bare_bytes(problem) : bytes(problem); }
  double share_of_ceiling(const Measurement& m) const { return ceiling.floor(flops_of(m), bytes_of(m)) / m.wall.best; }
};

Json to_json(const Result& result);

// One line per candidate.
std::string case_table(const std::vector<Result>& results);

// One line per model, device, dtype and rank: all its layers together. The report receives the same figures.
std::string total_table(const std::vector<Result>& results, Report& report);

}  // namespace refiners::bench
