#include "bench/suite.h"

#include <iostream>

#include "capture.h"
#include "check.h"

using namespace refiners::bench;

namespace {

std::string last_run;

Suite make_suite(const std::string& name) {
  return {name,
          "About " + name + ".",
          {{"--rank", Kind::positive_integers, "4", "ranks"}},
          [name](const CommandLine& options, const std::string& command) {
            if (options.word("--rank") == "13") throw std::runtime_error("unlucky");
            last_run = name + " " + options.word("--rank") + " [" + command + "]";
          }};
}

[[maybe_unused]] const bool registered = register_suite(make_suite("zeta")) && register_suite(make_suite("alpha"));

struct Outcome {
  int status;
  std::string out;
  std::string err;
};

// Runs the command with both streams captured.
Outcome run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "build/refiners_bench");
  const refiners::test::Capture out(std::cout);
  const refiners::test::Capture err(std::cerr);
  last_run.clear();
  const int status = run_suites(arguments);
  return {status, out.text(), err.text()};
}

}  // namespace

TEST(the_named_suite_runs) {
  CHECK_EQ(run({"zeta", "--rank", "8"}).status, 0);
  CHECK_EQ(last_run, "zeta 8 [build/refiners_bench zeta --rank 8]");
}

TEST(without_a_name_the_first_in_the_alphabet_runs) {
  CHECK_EQ(run({"--rank", "8"}).status, 0);
  CHECK_EQ(last_run, "alpha 8 [build/refiners_bench --rank 8]");
}

TEST(help_lists_suites_and_options_and_runs_nothing) {
  const Outcome outcome = run({"--help"});
  CHECK_EQ(outcome.status, 0);
  CHECK_EQ(last_run, "");
  for (const char* expected : {"usage: refiners_bench [BENCHMARK]", "alpha", "zeta", "--rank"}) {
    CHECK(outcome.out.find(expected) != std::string::npos);
  }
}

TEST(a_usage_mistake_is_one_line_and_status_2) {
  const Outcome outcome = run({"beta"});
  CHECK_EQ(outcome.status, 2);
  CHECK_EQ(outcome.err, "refiners_bench: unknown benchmark 'beta'; expected alpha, zeta\n");
  CHECK_EQ(run({"--rank", "x"}).status, 2);
}

TEST(a_failing_run_is_one_line_and_status_1) {
  const Outcome outcome = run({"--rank", "13"});
  CHECK_EQ(outcome.status, 1);
  CHECK_EQ(outcome.err, "refiners_bench: unlucky\n");
}
