// The candidates of bench_lora_linear, in terms of torch. Everything that includes torch's headers is in
// lora_linear_torch.cpp: they cost a minute to compile.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "bench/compare.h"
#include "bench/json.h"
#include "bench/layer_shapes.h"

namespace refiners::bench {

struct LoraLinearProblem {
  LinearShape shape;
  std::int64_t rank = 0;
  std::string dtype;   // "float32", "bfloat16"
  std::string device;  // "cpu", "cuda"
};

// Defines the operator and loads its kernels. Throws std::runtime_error if the library cannot be loaded.
void load_lora_linear(const std::string& library);

std::vector<std::string> available_devices();

// torch's version and threads, and which plan the operator takes on the CPU.
Json describe_torch();

// How time is taken on a device.
std::unique_ptr<Stopwatch> make_stopwatch(const std::string& device);

// The ceiling for a dtype on a device. Where the processor has instructions for the dtype that a multiply-add in fp32
// does not show (tensor cores, AMX), the best that a large library GEMM reaches.
Ceiling measure_ceiling(const std::string& device, const std::string& dtype, const Ceiling& cpu);

struct LoraLinearCase {
  std::vector<Candidate> candidates;  // "bare", "lora_linear", "separate"
  double difference = 0;              // of the last two results: norm of the difference / norm of the result
};

// Random inputs, `copies` of them; a candidate uses the one that `current` tells.
LoraLinearCase make_case(const LoraLinearProblem& problem, std::size_t copies,
                         const std::function<std::size_t()>& current);

// What the problem needs at least: the products, each input read once, the output written once.
double flops(const LoraLinearProblem& problem);
double bytes(const LoraLinearProblem& problem);
double bare_flops(const LoraLinearProblem& problem);
double bare_bytes(const LoraLinearProblem& problem);

}  // namespace refiners::bench
