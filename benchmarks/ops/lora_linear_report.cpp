#include "lora_linear_report.h"

#include <map>

#include "bench/table.h"

namespace refiners::bench {
namespace {

// What a candidate costs beyond the layer alone, in percent of what `separate` does; "-" where that costs nothing.
std::string share_of_separate(double overhead, double separate) {
  return separate <= 0 ? "-" : fixed(100 * overhead / separate, 0);
}

// All layers of a model at one rank: the median time of the bare layers, and what each candidate adds to it.
struct Total {
  std::int64_t layers = 0;
  double bare = 0, ours = 0, separate = 0;
};

}  // namespace

Json to_json(const Result& result) {
  const auto& [shape, rank, dtype, device] = result.problem;
  Json candidates{Json::Array{}};
  for (const Measurement& m : result.measurements) {
    candidates.push(Json::Object{{"name", m.name},
                                 {"flops", result.flops_of(m)},
                                 {"bytes", result.bytes_of(m)},
                                 {"seconds", to_json(m.wall)},
                                 {"cpu_seconds", to_json(m.cpu)},
                                 {"share_of_ceiling", result.share_of_ceiling(m)},
                                 {"ratio_to_bare", m.ratio}});
  }
  return Json::Object{{"model", shape.model},
                      {"layers", shape.layers},
                      {"count", shape.count},
                      {"rows", shape.rows},
                      {"in_features", shape.in_features},
                      {"out_features", shape.out_features},
                      {"bias", shape.bias},
                      {"rank", rank},
                      {"dtype", dtype},
                      {"device", device},
                      {"relative_difference", result.difference},
                      {"candidates", std::move(candidates)}};
}

std::string case_table(const std::vector<Result>& results) {
  Table table({{"layer", Align::left},
               {"layers"},
               {"rank"},
               {"dtype", Align::left},
               {"device", Align::left},
               {"candidate", Align::left},
               {"GFLOP"},
               {"MB"},
               {"best ms"},
               {"median ms"},
               {"spread %"},
               {"CPU ms"},
               {"GFLOP/s"},
               {"% of ceiling"},
               {"% over bare"},
               {"% of separate"}});
  for (const Result& result : results) {
    const LoraLinearProblem& p = result.problem;
    const double separate = result.measurements.back().ratio - 1;
    for (const Measurement& m : result.measurements) {
      const bool bare = result.is_bare(m);
      table.add_row({bare ? describe(p.shape) : "", bare ? std::to_string(p.shape.count) : "",
                     bare ? std::to_string(p.rank) : "", bare ? p.dtype : "", bare ? p.device : "", m.name,
                     fixed(result.flops_of(m) / 1e9, 2), fixed(result.bytes_of(m) / 1e6, 1),
                     fixed(1e3 * m.wall.best, 3), fixed(1e3 * m.wall.median, 3), fixed(100 * m.wall.spread(), 0),
                     fixed(1e3 * m.cpu.median, 2), fixed(result.flops_of(m) / m.wall.best / 1e9, 1),
                     fixed(100 * result.share_of_ceiling(m), 0), bare ? "" : fixed(100 * (m.ratio - 1), 1),
                     bare ? "" : share_of_separate(m.ratio - 1, separate)});
    }
    table.add_gap();
  }
  return table.text();
}

std::string total_table(const std::vector<Result>& results, Report& report) {
  std::map<std::vector<std::string>, Total> totals;
  for (const Result& result : results) {
    const LoraLinearProblem& p = result.problem;
    Total& total = totals[{p.shape.model, p.device, p.dtype, std::to_string(p.rank)}];
    const double bare = static_cast<double>(p.shape.count) * result.measurements[0].wall.median;
    total.layers += p.shape.count;
    total.bare += bare;
    total.ours += bare * result.measurements[1].ratio;
    total.separate += bare * result.measurements[2].ratio;
  }
  Table table({{"all layers of", Align::left},
               {"device", Align::left},
               {"dtype", Align::left},
               {"rank"},
               {"layers"},
               {"bare ms"},
               {"lora_linear %"},
               {"separate %"},
               {"% of separate"}});
  for (const auto& [key, total] : totals) {
    const double ours = total.ours / total.bare - 1;
    const double separate = total.separate / total.bare - 1;
    table.add_row({key[0], key[1], key[2], key[3], std::to_string(total.layers), fixed(1e3 * total.bare, 1),
                   fixed(100 * ours, 1), fixed(100 * separate, 1), share_of_separate(ours, separate)});
    report.add_total(Json::Object{{"model", key[0]},
                                  {"device", key[1]},
                                  {"dtype", key[2]},
                                  {"rank", std::stol(key[3])},
                                  {"layers", total.layers},
                                  {"bare_seconds", total.bare},
                                  {"lora_linear_overhead", ours},
                                  {"separate_overhead", separate}});
  }
  return table.text();
}

}  // namespace refiners::bench
