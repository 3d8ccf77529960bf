// What the figures of a report were measured on.
#pragma once

#include <array>
#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

#include "json.h"

namespace refiners::bench {

struct Cpu {
  std::string model;
  std::vector<std::string> isa;  // the extensions that matter to our kernels, weakest first
};

// Reads the format of /proc/cpuinfo; what is missing there stays empty.
Cpu parse_cpuinfo(std::istream& cpuinfo);

struct Machine {
  Cpu cpu;
  std::size_t cores = 0;        // that this process may use
  std::size_t cache_bytes = 0;  // of the last level
  std::size_t memory_bytes = 0;
  std::string kernel;
  std::string compiler;
};

Machine inspect_machine();

// Runnable processes, averaged over 1, 5 and 15 minutes: well above 0 before a run, neighbours took part in it.
std::array<double, 3> load_average();

Json to_json(const Machine& machine);

// For the head of a table, one line.
std::string describe(const Machine& machine);

}  // namespace refiners::bench
