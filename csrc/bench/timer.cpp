#include "timer.h"

#include <time.h>

#include <cerrno>
#include <system_error>

namespace refiners::bench {
namespace {

double cpu_seconds(CpuClock clock) {
  timespec now{};
  if (clock_gettime(clock == CpuClock::thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_PROCESS_CPUTIME_ID, &now) != 0) {
    throw std::system_error(errno, std::generic_category(), "clock_gettime");
  }
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

// The wall clock is read innermost: reading the CPU clock is a system call, and its cost must not count as wall time.
Timer::Timer(CpuClock clock)
    : clock_(clock), cpu_start_(cpu_seconds(clock)), wall_start_(std::chrono::steady_clock::now()) {}

Elapsed Timer::elapsed() const {
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - wall_start_;
  return {wall.count(), cpu_seconds(clock_) - cpu_start_};
}

Elapsed CpuStopwatch::time(const std::function<void()>& work) {
  const Timer timer(CpuClock::process);
  work();
  return timer.elapsed();
}

}  // namespace refiners::bench
