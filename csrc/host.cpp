// refiners._host: what a build knows of itself and of this CPU, and the choices of kernels. No tensor passes here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <utility>

#include "common/cpu_features.h"
#include "ops/lora_linear/lora_linear_config.h"

namespace py = pybind11;
using namespace refiners;

namespace {

std::map<std::string, bool> as_dict(const CpuFeatures& f) {
  return {
      {"avx2", f.avx2},         {"avx512", f.avx512},    {"avx512_bf16", f.avx512_bf16}, {"avx512_fp16", f.avx512_fp16},
      {"amx_bf16", f.amx_bf16}, {"amx_fp16", f.amx_fp16}};
}

CpuFeatures from_dict(const std::map<std::string, bool>& names) {
  const auto has = [&](const char* name) {
    const auto found = names.find(name);
    return found != names.end() && found->second;
  };
  return {has("avx2"), has("avx512"), has("avx512_bf16"), has("avx512_fp16"), has("amx_bf16"), has("amx_fp16")};
}

CpuIsa isa_named(const std::string& name) {
  for (int i = 0; i < kCpuIsaCount; ++i) {
    if (name == kCpuIsaNames[i]) return static_cast<CpuIsa>(i);
  }
  throw py::value_error("isa must be portable, avx2, avx512 or amx, got " + name);
}

std::pair<std::string, std::string> as_pair(const LoraLinearChoice& choice) {
  return {kLoraLinearPlanNames[static_cast<int>(choice.plan)], choice.reason};
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build information, CPU features and the choices of kernels, without torch.";
  m.def("build_record", [] { return std::string(REFINERS_BUILD_RECORD); }, "How this was built, as JSON.");
  m.def("cpu_features", [] { return as_dict(cpu_features()); }, "What this CPU has and its system saves.");
  m.def(
      "best_cpu_isa",
      [](const std::map<std::string, bool>& f) { return kCpuIsaNames[int(best_cpu_isa(from_dict(f)))]; },
      py::arg("features"), "The best instruction set for these features, as far as there are kernels for it.");
  m.def(
      "choose_lora_linear_cpu_plan",
      [](const std::string& isa, const std::map<std::string, bool>& features, const std::string& dtype,
         bool has_block) {
        return as_pair(
            choose_lora_linear_cpu_plan(isa_named(isa), from_dict(features), dtype_named(dtype.c_str()), has_block));
      },
      py::arg("isa"), py::arg("features"), py::arg("dtype"), py::arg("has_block"),
      "What lora_linear does on a CPU, and the reason.");
  m.def(
      "choose_lora_linear_cuda_plan",
      [](const std::string& dtype, int64_t adapters, bool has_block) {
        return as_pair(choose_lora_linear_cuda_plan(dtype_named(dtype.c_str()), adapters, has_block));
      },
      py::arg("dtype"), py::arg("adapters"), py::arg("has_block"), "What lora_linear does on CUDA, and the reason.");
  m.def(
      "choose_lora_linear_pack_config",
      [](int64_t element_size, int64_t in_features, uint64_t x, int64_t x_stride, uint64_t out, int64_t out_stride) {
        const LoraLinearPackConfig c =
            choose_lora_linear_pack_config(element_size, in_features, x, x_stride, out, out_stride);
        return std::make_pair(c.vector, c.rows_per_block);
      },
      py::arg("element_size"), py::arg("in_features"), py::arg("x"), py::arg("x_stride"), py::arg("out"),
      py::arg("out_stride"), "Elements at once, and rows in a thread block, of the CUDA kernel.");
}
