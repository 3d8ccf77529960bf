// The benchmarks of the executable: one suite per file of benchmarks/ops, which registers itself.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "command_line.h"

namespace refiners::bench {

struct Suite {
  std::string name;   // the operator's
  std::string about;  // one sentence
  std::vector<Option> options;
  std::function<void(const CommandLine& options, const std::string& command)> run;
};

// Returns true, so that a suite can register itself from the initializer of a constant.
bool register_suite(Suite suite);

// Runs `program [SUITE] [options]`; without a name, the first suite in alphabetical order. Returns the exit status: 0,
// 1 if the run failed, 2 after a one-line message about a bad option.
int run_suites(std::span<const std::string> arguments);

}  // namespace refiners::bench
