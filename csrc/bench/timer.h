// Wall time and CPU time of a piece of work on the host.
#pragma once

#include <chrono>
#include <functional>

namespace refiners::bench {

// Whose CPU time counts: the calling thread's, or that of every thread of the process (a library that owns a thread
// pool).
enum class CpuClock { thread, process };

struct Elapsed {
  double wall = 0;  // seconds
  double cpu = 0;   // seconds, summed over the threads that the clock covers
};

// Started by its construction.
class Timer {
 public:
  explicit Timer(CpuClock clock = CpuClock::process);

  Elapsed elapsed() const;

 private:
  CpuClock clock_;
  double cpu_start_;
  std::chrono::steady_clock::time_point wall_start_;
};

// Measures one call: a device has its own way (cuda_timer.h).
class Stopwatch {
 public:
  virtual ~Stopwatch() = default;
  virtual Elapsed time(const std::function<void()>& work) = 0;
};

class CpuStopwatch : public Stopwatch {
 public:
  Elapsed time(const std::function<void()>& work) override;
};

}  // namespace refiners::bench
