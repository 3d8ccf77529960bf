// The CPU kernels of lora_linear themselves, on one core and without torch: what the operator adds to a linear layer.

#include <random>

#include "bench/cache.h"
#include "bench/ceilings.h"
#include "bench/compare.h"
#include "bench/layer_shapes.h"
#include "bench/report.h"
#include "bench/suite.h"
#include "ops/lora_linear/lora_linear_config.h"
#include "ops/lora_linear/lora_linear_cpu_kernel.h"

namespace refiners::bench {
namespace {

const std::vector<Option> kOptions = {
    {"--model", Kind::words, "sd15,sdxl", "whose layers", {"sd15", "sdxl"}},
    {"--rank", Kind::positive_integers, "16,64,128", "ranks of the update"},
    {"--dtype", Kind::words, "float32,bfloat16", "of everything but the scale", {"float32", "bfloat16"}},
    {"--rows", Kind::positive_integers, "256", "at most so many rows"},
    {"--min-time", Kind::positive_number, "0.05", "seconds that each candidate runs at least"},
    {"--shapes", Kind::word, REFINERS_SHAPES_FOLDER, "the folder with the tables of layers"},
    {"--table", Kind::word, "", "file to write the table to"},
    {"--json", Kind::word, "", "file to write the figures to"},
};

// The operands of the kernels, filled with numbers that are small in either dtype.
class Operands {
 public:
  Operands(const LinearShape& shape, std::int64_t rank, Dtype dtype) {
    const auto allocate = [&](std::int64_t elements) {
      auto& values = buffers_.emplace_back(static_cast<std::size_t>(elements) * (dtype == Dtype::kFloat32 ? 2 : 1));
      for (auto& value : values) value = static_cast<std::uint16_t>(0x3C00 + random_() % 256);
      return static_cast<void*>(values.data());
    };
    adapter_ = {allocate(rank * shape.in_features),
                shape.in_features,
                1,
                allocate(rank * shape.out_features),
                rank,
                1,
                rank,
                0};
    params_ = {dtype,
               shape.rows,
               shape.in_features,
               shape.out_features,
               rank,
               allocate(shape.rows * shape.in_features),
               shape.in_features,
               allocate(shape.rows * shape.out_features),
               shape.out_features,
               &adapter_,
               1,
               &scale_,
               1,
               shape.rows,
               nullptr,
               nullptr};
  }

  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;

  // What the operator runs with one instruction set: for a few rows kernels that pack nothing, else packing, which
  // depends on the weights alone, and the update of the rows.
  std::vector<Candidate> candidates(const char* isa, const LoraLinearCpuKernels& kernels) {
    const auto floats = [&](std::int64_t count) {
      return floats_.emplace_back(static_cast<std::size_t>(count)).data();
    };
    LoraLinearParams p = params_;
    if (p.rows <= kLoraLinearFewRows) {
      float* d = floats(kernels.few_rows_size(p));
      return {{std::string(isa) + " few rows", [p, &kernels, d] {
                 kernels.project_few_rows(p, 0, p.rank, d);
                 kernels.update_few_rows(p, 0, p.out_features, d);
               }}};
    }
    p.packed_down = floats(kernels.packed_down_size(p));
    p.packed_up = floats(kernels.packed_up_size(p));
    float* scratch = floats(kernels.scratch_size(p));
    return {{std::string(isa) + " pack",
             [p, &kernels] {
               kernels.pack_down(p, 0, p.in_features);
               kernels.pack_up(p, 0, p.out_features);
             }},
            {std::string(isa) + " update", [p, &kernels, scratch] { kernels.update_rows(p, 0, p.rows, scratch); }}};
  }

 private:
  std::mt19937 random_{0};
  float scale_ = 0.5f;
  std::vector<std::vector<std::uint16_t>> buffers_;
  std::vector<std::vector<float>> floats_;
  LoraLinearAdapter adapter_{};
  LoraLinearParams params_{};
};

struct Work {
  double flops = 0;
  double bytes = 0;
};

// `pack` moves the weights of the update; the others multiply, read x and the weights, which are float32 once packed,
// and read and write y.
Work work_of(const std::string& kernel, const LinearShape& shape, std::int64_t rank, Dtype dtype) {
  const double size = dtype == Dtype::kFloat32 ? 4 : 2;
  const auto in = static_cast<double>(shape.in_features);
  const auto out = static_cast<double>(shape.out_features);
  const auto weights = static_cast<double>(rank) * (in + out);
  const auto rows = static_cast<double>(shape.rows);
  if (kernel.ends_with("pack")) return {0, weights * (size + 4)};
  return {2 * rows * weights, rows * size * (in + 2 * out) + weights * (kernel.ends_with("few rows") ? size : 4)};
}

std::vector<std::pair<const char*, const LoraLinearCpuKernels*>> available_kernels() {
  std::vector<std::pair<const char*, const LoraLinearCpuKernels*>> found;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    const auto* kernels = lora_linear_cpu_kernels(isa);
    if (kernels != nullptr && isa <= best_cpu_isa(cpu_features())) {
      found.emplace_back(kCpuIsaNames[static_cast<int>(isa)], kernels);
    }
  }
  if (found.empty()) throw std::runtime_error("this CPU has no kernel of lora_linear");
  return found;
}

Table make_table() {
  return Table({{"layer", Align::left},
                {"rank"},
                {"dtype", Align::left},
                {"kernel", Align::left},
                {"best ms"},
                {"median ms"},
                {"spread %"},
                {"GFLOP/s"},
                {"% of core"},
                {"GB/s"}});
}

// Runs one problem and adds it to the table and the report.
void run_problem(const LinearShape& shape, std::int64_t rank, const std::string& dtype_name, double min_time,
                 double core_flops, CacheFlusher& flusher, Table& table, Report& report) {
  const Dtype dtype = dtype_named(dtype_name.c_str());
  Operands operands(shape, rank, dtype);
  std::vector<Candidate> candidates;
  for (const auto& [isa, kernels] : available_kernels()) {
    for (auto& candidate : operands.candidates(isa, *kernels)) candidates.push_back(std::move(candidate));
  }
  CpuStopwatch stopwatch;
  const Plan plan{.min_time = min_time, .max_rounds = 50};
  for (const auto& m : compare(candidates, stopwatch, plan, [&] { flusher.flush(); })) {
    const Work work = work_of(m.name, shape, rank, dtype);
    const double rate = work.flops / m.wall.best;
    table.add_row({describe(shape), std::to_string(rank), dtype_name, m.name, fixed(1e3 * m.wall.best, 3),
                   fixed(1e3 * m.wall.median, 3), fixed(100 * m.wall.spread(), 0),
                   work.flops > 0 ? fixed(rate / 1e9, 1) : "", work.flops > 0 ? fixed(100 * rate / core_flops, 0) : "",
                   fixed(work.bytes / m.wall.best / 1e9, 1)});
    report.add_case(Json::Object{{"model", shape.model},
                                 {"rows", shape.rows},
                                 {"in_features", shape.in_features},
                                 {"out_features", shape.out_features},
                                 {"rank", rank},
                                 {"dtype", dtype_name},
                                 {"kernel", m.name},
                                 {"flops", work.flops},
                                 {"bytes", work.bytes},
                                 {"seconds", to_json(m.wall)}});
  }
}

void run(const CommandLine& options, const std::string& command) {
  for (const char* file : {"--table", "--json"}) check_writable(options.word(file));
  const auto shapes =
      select_linear_shapes(options.word("--shapes"), options.words("--model"), options.integers("--rows"));
  Report report("lora_linear_kernel", command);
  const double core_flops = measure_core_fma_flops();
  report.add_fact("gflops_per_second of a core", core_flops / 1e9);
  CacheFlusher flusher;
  Table table = make_table();
  for (const auto& dtype : options.words("--dtype")) {
    for (const auto rank : options.integers("--rank")) {
      for (const auto& shape : shapes) {
        run_problem(shape, rank, dtype, options.number("--min-time"), core_flops, flusher, table, report);
      }
    }
  }
  report.finish(table.text(), options.word("--table"), options.word("--json"));
}

[[maybe_unused]] const bool registered = register_suite(
    {"lora_linear_kernel",
     "The CPU kernels that lora_linear adds to a linear layer, on one core and without torch: packing the "
     "weights of the update, and the update of the output; for a few rows the update without packing.",
     kOptions, run});

}  // namespace
}  // namespace refiners::bench
