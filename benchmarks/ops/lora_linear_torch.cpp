#include "lora_linear_torch.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include "bench/machine.h"

#ifdef REFINERS_HAS_CUDA
#include "bench/cuda_cache.h"
#include "bench/cuda_timer.h"
#endif

namespace refiners::bench {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr int kCeilingRuns = 5;
constexpr std::int64_t kCeilingSize = 4096;  // rows, columns and depth of the GEMM of measure_ceiling

at::ScalarType dtype_of(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  throw std::invalid_argument("unknown dtype " + name);
}

// What the library's kernels call for arguments that they refuse, and what runs where there is no kernel. The schemas
// and the formula are those of python/refiners/ops/lora_linear.py, with which a test compares them: this process has no
// Python.
Tensor portable(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, at::TensorList downs,
                at::TensorList ups, const Tensor& scale, const MaybeTensor&) {
  Tensor y = at::linear(x, weight, bias);
  for (std::size_t i = 0; i < downs.size(); ++i) {
    const auto lead = scale.dim() - 1;
    Tensor multiplier = scale.select(0, static_cast<std::int64_t>(i)).to(x.scalar_type());
    for (auto d = lead; d < x.dim(); ++d) multiplier = multiplier.unsqueeze(-1);
    y = y + at::linear(at::linear(x, downs[i]) * multiplier, ups[i]);
  }
  return y;
}

TORCH_LIBRARY_FRAGMENT(refiners, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  library.def(
      "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor[] downs, Tensor[] ups, Tensor scale, "
      "Tensor? block=None) -> Tensor");
  library.def(
      "_lora_linear_portable(Tensor x, Tensor weight, Tensor? bias, Tensor[] downs, Tensor[] ups, Tensor scale, "
      "Tensor? block=None) -> Tensor");
  library.impl("lora_linear", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(portable)));
  library.impl("_lora_linear_portable",
               torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(portable)));
}

Tensor lora_linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, at::TensorList downs,
                   at::TensorList ups, const Tensor& scale, const MaybeTensor& block) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("refiners::lora_linear", "").typed<decltype(portable)>();
  return op.call(x, weight, bias, downs, ups, scale, block);
}

at::TensorOptions options_of(const LoraLinearProblem& problem) {
  return at::TensorOptions(dtype_of(problem.dtype)).device(problem.device);
}

// Weights of the size that a trained layer has, so that nothing is rounded to a special value. Never zeros: on a GPU
// they take less power and run faster.
struct Inputs {
  explicit Inputs(const LoraLinearProblem& problem) {
    const auto& s = problem.shape;
    const auto options = options_of(problem);
    const double shrink = 1 / std::sqrt(static_cast<double>(s.in_features));
    x = at::randn({s.rows, s.in_features}, options);
    weight = at::randn({s.out_features, s.in_features}, options) * shrink;
    if (s.bias) bias = at::randn({s.out_features}, options);
    downs = {at::randn({problem.rank, s.in_features}, options) * shrink};
    ups = {at::randn({s.out_features, problem.rank}, options) * (1 / std::sqrt(static_cast<double>(problem.rank)))};
    scale = at::full({1}, 0.5, options.dtype(at::kFloat));
    if (uses_block(problem)) block = make_block();
  }

  // [W | B | 0]: what prepare_lora_block of python/refiners/ops/lora_block.py gives a layer.
  Tensor make_block() const {
    const auto rank = ups[0].size(1);
    return at::cat({weight, ups[0], at::zeros({weight.size(0), (rank + 7) / 8 * 8 - rank}, weight.options())}, 1);
  }

  static bool uses_block(const LoraLinearProblem& problem);

  Tensor x, weight;
  MaybeTensor bias;
  std::vector<Tensor> downs, ups;
  Tensor scale;
  MaybeTensor block;
};

const char* (*explain_on_cpu)(const char* dtype, int has_block) = nullptr;

bool Inputs::uses_block(const LoraLinearProblem& problem) {
  if (problem.device != "cpu") return true;
  return std::string(explain_on_cpu(problem.dtype.c_str(), 1)).starts_with("block");
}

Tensor run_bare(const Inputs& i) { return at::linear(i.x, i.weight, i.bias); }

Tensor run_lora_linear(const Inputs& i) { return lora_linear(i.x, i.weight, i.bias, i.downs, i.ups, i.scale, i.block); }

// The tree of a low-rank adapter, run module by module: Sum(Linear, Chain(Linear, Linear, Multiply)).
Tensor run_separate(const Inputs& i) {
  constexpr double kScale = 0.5;
  return at::linear(i.x, i.weight, i.bias) + at::linear(at::linear(i.x, i.downs[0]), i.ups[0]) * kScale;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  const Tensor reference = b.to(at::kFloat);
  return ((a.to(at::kFloat) - reference).norm() / reference.norm()).item<double>();
}

// Seconds of the best of several calls.
double best_time(Stopwatch& stopwatch, const std::function<void()>& work) {
  double best = std::numeric_limits<double>::infinity();
  work();
  for (int run = 0; run < kCeilingRuns; ++run) best = std::min(best, stopwatch.time(work).wall);
  return best;
}

double measure_gemm(const std::string& device, const std::string& dtype, Stopwatch& stopwatch) {
  const c10::InferenceMode inference;
  const auto options = at::TensorOptions(dtype_of(dtype)).device(device);
  const Tensor a = at::randn({kCeilingSize, kCeilingSize}, options);
  const Tensor b = at::randn({kCeilingSize, kCeilingSize}, options);
  const double seconds = best_time(stopwatch, [&] { at::linear(a, b); });
  return 2 * std::pow(static_cast<double>(kCeilingSize), 3) / seconds;
}

bool has_bfloat16_instructions() {
  const auto isa = inspect_machine().cpu.isa;
  return std::ranges::any_of(
      isa, [](const auto& name) { return name == "avx512_bf16" || name == "amx_bf16" || name == "bf16"; });
}

std::string describe_gemm(const std::string& dtype) {
  const auto size = std::to_string(kCeilingSize);
  return "the library's " + dtype + " GEMM of " + size + "x" + size + "x" + size;
}

double count(std::int64_t value) { return static_cast<double>(value); }

}  // namespace

void load_lora_linear(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) throw std::runtime_error("cannot load " + library + ": " + dlerror());
  explain_on_cpu = reinterpret_cast<decltype(explain_on_cpu)>(dlsym(handle, "refiners_explain_lora_linear"));
  if (explain_on_cpu == nullptr) throw std::runtime_error(library + " is no operator library of refiners");
}

std::vector<std::string> available_devices() {
#ifdef REFINERS_HAS_CUDA
  if (at::hasCUDA() && cuda_device_count() > 0) return {"cpu", "cuda"};
#endif
  return {"cpu"};
}

Json describe_torch() {
  return Json::Object{{"version", TORCH_VERSION},
                      {"threads", at::get_num_threads()},
                      {"lora_linear float32", explain_on_cpu("float32", 1)},
                      {"lora_linear bfloat16", explain_on_cpu("bfloat16", 1)}};
}

std::unique_ptr<Stopwatch> make_stopwatch(const std::string& device) {
#ifdef REFINERS_HAS_CUDA
  if (device == "cuda") return std::make_unique<CudaStopwatch>();
#endif
  if (device != "cpu") throw std::invalid_argument("no stopwatch for " + device);
  return std::make_unique<CpuStopwatch>();
}

Ceiling measure_ceiling(const std::string& device, const std::string& dtype, const Ceiling& cpu) {
  Ceiling ceiling = cpu;
#ifdef REFINERS_HAS_CUDA
  if (device == "cuda") {
    ceiling.bytes_per_second = measure_cuda_copy_bandwidth();
    ceiling.how = describe_gemm(dtype) + " and a copy in device memory, " + cuda_device_name();
  }
#endif
  if (device == "cuda" || (dtype == "bfloat16" && has_bfloat16_instructions())) {
    ceiling.flops_per_second = measure_gemm(device, dtype, *make_stopwatch(device));
    if (device == "cpu") ceiling.how = describe_gemm(dtype) + " and a memory copy";
  }
  return ceiling;
}

LoraLinearCase make_case(const LoraLinearProblem& problem, std::size_t copies,
                         const std::function<std::size_t()>& current) {
  const c10::InferenceMode inference;
  at::manual_seed(0);
  auto inputs = std::make_shared<std::vector<Inputs>>();
  for (std::size_t i = 0; i < copies; ++i) inputs->emplace_back(problem);
  const auto candidate = [&](const char* name, Tensor (*run)(const Inputs&)) {
    return Candidate{name, [inputs, current, run] {
                       const c10::InferenceMode guard;
                       run((*inputs)[current()]);
                     }};
  };
  const Inputs& first = inputs->front();
  return {{candidate("bare", run_bare), candidate("lora_linear", run_lora_linear), candidate("separate", run_separate)},
          relative_difference(run_lora_linear(first), run_separate(first))};
}

double bare_flops(const LoraLinearProblem& problem) {
  const auto& s = problem.shape;
  return 2 * count(s.rows) * count(s.in_features) * count(s.out_features);
}

double bare_bytes(const LoraLinearProblem& problem) {
  const auto& s = problem.shape;
  const double elements = count(s.rows) * count(s.in_features + s.out_features) +
                          count(s.in_features) * count(s.out_features) + (s.bias ? count(s.out_features) : 0);
  return elements * static_cast<double>(at::elementSize(dtype_of(problem.dtype)));
}

double flops(const LoraLinearProblem& problem) {
  const auto& s = problem.shape;
  return bare_flops(problem) + 2 * count(s.rows) * count(problem.rank) * count(s.in_features + s.out_features);
}

double bytes(const LoraLinearProblem& problem) {
  const auto& s = problem.shape;
  return bare_bytes(problem) + count(problem.rank) * count(s.in_features + s.out_features) *
                                   static_cast<double>(at::elementSize(dtype_of(problem.dtype)));
}

}  // namespace refiners::bench
