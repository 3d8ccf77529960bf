#include "machine.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "cache.h"
#include "cpus.h"
#include "table.h"

namespace refiners::bench {
namespace {

constexpr std::array kExtensions = {"sse4_2",   "avx",         "f16c",        "fma",         "avx2",     "avx512f",
                                    "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
                                    "asimd",    "asimddp",     "bf16",        "sve"};

// "model name\t: AMD EPYC" -> {"model name", "AMD EPYC"}
std::pair<std::string, std::string> split_field(const std::string& line) {
  const auto colon = line.find(':');
  if (colon == std::string::npos) return {};
  const auto key_end = line.find_last_not_of(" \t", colon == 0 ? 0 : colon - 1);
  const auto value = line.find_first_not_of(" \t", colon + 1);
  return {line.substr(0, key_end + 1), value == std::string::npos ? "" : line.substr(value)};
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

std::string kernel_name() {
  utsname name{};
  return uname(&name) == 0 ? std::string(name.sysname) + " " + name.release : "";
}

std::size_t physical_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(page) : 0;
}

std::string compiler_name() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

Cpu parse_cpuinfo(std::istream& cpuinfo) {
  Cpu cpu;
  std::string line;
  while (std::getline(cpuinfo, line) && (cpu.model.empty() || cpu.isa.empty())) {
    const auto [key, value] = split_field(line);
    if (key == "model name" && cpu.model.empty()) cpu.model = value;
    if ((key == "flags" || key == "Features") && cpu.isa.empty()) {
      std::istringstream words(value);
      const std::vector<std::string> flags{std::istream_iterator<std::string>(words), {}};
      for (const char* extension : kExtensions) {
        if (std::ranges::find(flags, extension) != flags.end()) cpu.isa.emplace_back(extension);
      }
    }
  }
  return cpu;
}

Machine inspect_machine() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  return {parse_cpuinfo(cpuinfo), available_cpus().size(), last_level_cache_bytes(),
          physical_memory(),      kernel_name(),           compiler_name()};
}

std::array<double, 3> load_average() {
  std::array<double, 3> load{};
  getloadavg(load.data(), static_cast<int>(load.size()));
  return load;
}

Json to_json(const Machine& machine) {
  Json isa{Json::Array{}};
  for (const auto& extension : machine.cpu.isa) isa.push(extension);
  return Json::Object{{"cpu", machine.cpu.model},
                      {"isa", isa},
                      {"cores", machine.cores},
                      {"last_level_cache_bytes", machine.cache_bytes},
                      {"memory_bytes", machine.memory_bytes},
                      {"kernel", machine.kernel},
                      {"compiler", machine.compiler}};
}

std::string describe(const Machine& machine) {
  constexpr double kMiB = 1 << 20;
  return machine.cpu.model + ", " + std::to_string(machine.cores) + " cores, " +
         fixed(static_cast<double>(machine.cache_bytes) / kMiB, 0) + " MiB last-level cache, " + join(machine.cpu.isa) +
         "; " + machine.kernel + "; " + machine.compiler;
}

}  // namespace refiners::bench
