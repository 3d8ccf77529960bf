// lora_linear over the linear layers of the U-Nets, against the layer alone and against separate operations.

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <map>

#include "bench/cache.h"
#include "bench/report.h"
#include "bench/rotation.h"
#include "bench/suite.h"
#include "lora_linear_report.h"
#include "lora_linear_torch.h"

#ifdef REFINERS_HAS_CUDA
#include "bench/cuda_cache.h"
#endif

namespace refiners::bench {
namespace {

constexpr std::int64_t kCpuRows = 1024;  // a CPU needs seconds for the rows of the largest layers

const std::vector<Option> kOptions = {
    {"--model", Kind::words, "sd15,sdxl", "whose layers", {"sd15", "sdxl"}},
    {"--rank", Kind::positive_integers, "16,64,128", "ranks of the update"},
    {"--dtype", Kind::words, "float32,bfloat16", "of everything but the scale", {"float32", "bfloat16"}},
    {"--rows", Kind::positive_integers, "", "at most so many rows; without it 1024 on a CPU, all of them on a GPU"},
    {"--device", Kind::words, "", "where to run; without it wherever it can", {"cpu", "cuda"}},
    {"--cache",
     Kind::word,
     "flush",
     "before each call, overwrite the cache, or move to other inputs, or leave the cache warm",
     {"flush", "rotate", "warm"}},
    {"--min-time", Kind::positive_number, "0.2", "seconds that each candidate runs at least"},
    {"--library", Kind::word, REFINERS_OPS_LIBRARY, "the operator library"},
    {"--shapes", Kind::word, REFINERS_SHAPES_FOLDER, "the folder with the tables of layers"},
    {"--table", Kind::word, "", "file to write the table to"},
    {"--json", Kind::word, "", "file to write the figures to"},
};

// What makes the caches of a device cold before a call.
class ColdCache {
 public:
  ColdCache(const std::string& device, const std::string& mode) : mode_(mode) {
    if (device == "cpu") {
      cache_bytes_ = last_level_cache_bytes();
      flush_ = [flusher = std::make_shared<CacheFlusher>()] { flusher->flush(); };
    }
#ifdef REFINERS_HAS_CUDA
    if (device == "cuda") {
      auto flusher = std::make_shared<CudaCacheFlusher>();
      cache_bytes_ = flusher->bytes() / 2;
      flush_ = [flusher] { flusher->flush(); };
    }
#endif
  }

  Rotation rotation_for(double input_bytes) const {
    return {static_cast<std::size_t>(input_bytes), mode_ == "rotate" ? cache_bytes_ : 0};
  }

  void prepare(Rotation& rotation) const {
    rotation.advance();
    if (mode_ == "flush") flush_();
  }

 private:
  std::string mode_;
  std::size_t cache_bytes_ = 0;
  std::function<void()> flush_;
};

void check_result(const LoraLinearProblem& problem, double difference) {
  const double allowed = problem.dtype == "float32" ? 1e-4 : 2e-2;
  if (!(difference <= allowed)) {
    throw std::runtime_error("lora_linear is wrong: it differs from separate operations by " +
                             std::to_string(difference) + ", expected at most " + std::to_string(allowed));
  }
}

Result run_problem(const LoraLinearProblem& problem, const Ceiling& ceiling, const ColdCache& cache, double min_time) {
  const auto stopwatch = make_stopwatch(problem.device);
  Rotation rotation = cache.rotation_for(bytes(problem));
  const auto inputs = make_case(problem, rotation.copies(), [&] { return rotation.current(); });
  check_result(problem, inputs.difference);
  const Plan plan{.min_time = min_time, .min_rounds = problem.device == "cuda" ? 20 : 5, .max_rounds = 100};
  return {problem, ceiling, inputs.difference,
          compare(inputs.candidates, *stopwatch, plan, [&] { cache.prepare(rotation); })};
}

std::vector<std::string> choose_devices(const CommandLine& options) {
  const auto available = available_devices();
  const auto wanted = options.words("--device");
  for (const auto& device : wanted) {
    if (std::ranges::find(available, device) == available.end()) {
      throw UsageError("--device: there is no " + device + " here, or torch or this program was built without it");
    }
  }
  return wanted.empty() ? available : wanted;
}

std::vector<LoraLinearProblem> choose_problems(const CommandLine& options) {
  std::vector<LoraLinearProblem> problems;
  for (const auto& device : choose_devices(options)) {
    auto limits = options.integers("--rows");
    if (limits.empty()) limits = {device == "cpu" ? kCpuRows : std::numeric_limits<std::int64_t>::max()};
    const auto shapes = select_linear_shapes(options.word("--shapes"), options.words("--model"), limits);
    for (const auto& dtype : options.words("--dtype")) {
      for (const auto rank : options.integers("--rank")) {
        for (const auto& shape : shapes) problems.push_back({shape, rank, dtype, device});
      }
    }
  }
  return problems;
}

void show_progress(std::size_t done, std::size_t all, const LoraLinearProblem& problem) {
  if (isatty(STDERR_FILENO) == 0) return;
  std::cerr << "\r\x1b[K[" << done + 1 << '/' << all << "] " << describe(problem.shape) << ' ' << problem.dtype
            << " rank " << problem.rank << std::flush;
}

void run(const CommandLine& options, const std::string& command) {
  for (const char* file : {"--table", "--json"}) check_writable(options.word(file));
  load_lora_linear(options.word("--library"));
  const auto problems = choose_problems(options);
  Report report("lora_linear", command);
  report.add_fact("torch", describe_torch());
  report.add_fact("cache", options.word("--cache"));
  const Ceiling cpu = measure_cpu_ceiling();
  std::map<std::string, Ceiling> ceilings;
  std::map<std::string, ColdCache> caches;
  std::vector<Result> results;
  for (const auto& problem : problems) {
    const auto name = problem.device + " " + problem.dtype;
    if (!ceilings.contains(name)) {
      ceilings[name] = measure_ceiling(problem.device, problem.dtype, cpu);
      report.add_fact("ceiling " + name, to_json(ceilings[name]));
    }
    const auto cache = caches.try_emplace(problem.device, problem.device, options.word("--cache")).first;
    show_progress(results.size(), problems.size(), problem);
    results.push_back(run_problem(problem, ceilings[name], cache->second, options.number("--min-time")));
    report.add_case(to_json(results.back()));
  }
  if (isatty(STDERR_FILENO) != 0) std::cerr << "\r\x1b[K";
  const std::string tables = case_table(results) + total_table(results, report);
  report.finish(tables, options.word("--table"), options.word("--json"));
}

[[maybe_unused]] const bool registered = register_suite(
    {"lora_linear",
     "A linear layer and its low-rank update, over the layers of the U-Nets: the layer alone (bare), the "
     "operator, and the operations one by one (separate).",
     kOptions, run});

}  // namespace
}  // namespace refiners::bench
