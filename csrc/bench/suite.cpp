#include "suite.h"

#include <algorithm>
#include <exception>
#include <iostream>

namespace refiners::bench {
namespace {

std::vector<Suite>& registry() {
  static std::vector<Suite> suites;
  return suites;
}

const Suite& find_suite(const std::string& name) {
  const auto found = std::ranges::find(registry(), name, &Suite::name);
  if (found != registry().end()) return *found;
  std::string names;
  for (const Suite& suite : registry()) names += (names.empty() ? "" : ", ") + suite.name;
  throw UsageError("unknown benchmark '" + name + "'; expected " + (names.empty() ? "none: none was built" : names));
}

std::string help(const std::string& program, const Suite& chosen) {
  std::string out = "usage: " + program + " [BENCHMARK] [OPTION VALUE]...\n\nBenchmarks:\n";
  for (const Suite& suite : registry()) out += "  " + suite.name + "\n      " + suite.about + "\n";
  return out + "\nOptions of " + chosen.name + ":\n" + describe(chosen.options);
}

std::string join(std::span<const std::string> words) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

void run(std::span<const std::string> arguments) {
  std::ranges::sort(registry(), {}, &Suite::name);
  const std::string program = arguments.front().substr(arguments.front().rfind('/') + 1);
  auto rest = arguments.subspan(1);
  const bool named = !rest.empty() && !rest.front().starts_with("-");
  if (registry().empty() && !named) throw UsageError("no benchmark was built");
  const Suite& suite = find_suite(named ? rest.front() : registry().front().name);
  if (named) rest = rest.subspan(1);
  if (std::ranges::any_of(rest, [](const auto& word) { return word == "--help" || word == "-h"; })) {
    std::cout << help(program, suite);
    return;
  }
  suite.run(CommandLine(suite.options, rest), join(arguments));
}

}  // namespace

bool register_suite(Suite suite) {
  registry().push_back(std::move(suite));
  return true;
}

int run_suites(std::span<const std::string> arguments) {
  try {
    run(arguments);
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "refiners_bench: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "refiners_bench: " << error.what() << '\n';
    return 1;
  }
}

}  // namespace refiners::bench
