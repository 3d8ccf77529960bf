#include "bench/cpus.h"

#include <sched.h>

#include <stdexcept>

#include "check.h"

using namespace refiners::bench;

TEST(each_available_cpu_gets_its_call) {
  const auto cpus = available_cpus();
  std::vector<int> ran_on(cpus.size(), -1);
  run_on_each_cpu([&](std::size_t i) { ran_on[i] = sched_getcpu(); });
  CHECK(ran_on == cpus);
}

TEST(the_calling_thread_is_not_pinned) {
  const auto before = available_cpus();
  run_on_each_cpu([](std::size_t) {});
  CHECK(available_cpus() == before);
}

TEST(an_exception_comes_back) {
  const auto fail = [](std::size_t i) {
    if (i == 0) throw std::runtime_error("broken");
  };
  CHECK_EQ(MESSAGE_OF(std::runtime_error, run_on_each_cpu(fail)), "broken");
}
