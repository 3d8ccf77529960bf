#include "bench/timer.h"

#include <chrono>
#include <thread>

#include "check.h"

using namespace refiners::bench;
using namespace std::chrono_literals;

namespace {

// Keeps the calling thread busy until it has used `seconds` of CPU time. Returns what the timer said then.
Elapsed burn(const Timer& timer, double seconds) {
  Elapsed elapsed = timer.elapsed();
  while (elapsed.cpu < seconds) elapsed = timer.elapsed();
  return elapsed;
}

}  // namespace

TEST(sleeping_takes_wall_time_and_no_cpu_time) {
  const Timer timer(CpuClock::thread);
  std::this_thread::sleep_for(50ms);
  const Elapsed elapsed = timer.elapsed();
  CHECK(elapsed.wall >= 0.05);
  CHECK(elapsed.cpu < 0.025);
}

TEST(work_takes_both) {
  const Timer timer(CpuClock::thread);
  const Elapsed elapsed = burn(timer, 0.02);
  CHECK(elapsed.cpu >= 0.02);
  CHECK(elapsed.wall >= 0.019);
}

TEST(the_process_clock_counts_other_threads_and_the_thread_clock_does_not) {
  const Timer process(CpuClock::process);
  const Timer thread(CpuClock::thread);
  std::jthread([] { burn(Timer(CpuClock::thread), 0.05); }).join();
  CHECK(process.elapsed().cpu >= 0.05);
  CHECK(thread.elapsed().cpu < 0.025);
}

TEST(the_stopwatch_times_the_call) {
  CpuStopwatch stopwatch;
  const Elapsed elapsed = stopwatch.time([] { std::this_thread::sleep_for(20ms); });
  CHECK(elapsed.wall >= 0.02);
  CHECK(stopwatch.time([] {}).wall < elapsed.wall);
}
