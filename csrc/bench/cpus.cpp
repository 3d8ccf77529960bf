#include "cpus.h"

#include <sched.h>

#include <barrier>
#include <exception>
#include <thread>

namespace refiners::bench {
namespace {

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  sched_setaffinity(0, sizeof set, &set);  // a hint: where it is refused, the scheduler spreads the threads itself
}

}  // namespace

std::vector<int> available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(static_cast<std::size_t>(cpu), &set)) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

void run_on_each_cpu(const std::function<void(std::size_t)>& work) {
  const auto cpus = available_cpus();
  std::barrier start(static_cast<std::ptrdiff_t>(cpus.size()));
  std::vector<std::exception_ptr> errors(cpus.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < cpus.size(); ++i) {
      threads.emplace_back([&, i] {
        pin_to(cpus[i]);
        start.arrive_and_wait();
        try {
          work(i);
        } catch (...) {
          errors[i] = std::current_exception();
        }
      });
    }
  }
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace refiners::bench
