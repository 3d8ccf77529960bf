#include "bench/compare.h"

#include <stdexcept>
#include <string>

#include "check.h"

using namespace refiners::bench;

namespace {

// Time as the test wants it: each call takes what its candidate last announced.
class FakeStopwatch : public Stopwatch {
 public:
  Elapsed time(const std::function<void()>& work) override {
    work();
    return {next, 2 * next};
  }
  double next = 0;
};

struct Fixture {
  Candidate candidate(const std::string& name, double seconds) {
    return {name, [this, name, seconds] {
              log += name;
              stopwatch.next = seconds * slowness;
            }};
  }
  std::function<void()> flush() {
    return [this] { log += '.'; };
  }
  FakeStopwatch stopwatch;
  double slowness = 1;
  std::string log;
};

}  // namespace

TEST(every_round_starts_with_another_candidate_after_a_flush) {
  Fixture f;
  const std::vector candidates{f.candidate("a", 1), f.candidate("b", 2), f.candidate("c", 3)};
  compare(candidates, f.stopwatch, {.min_time = 0, .warmup_rounds = 1, .min_rounds = 4}, f.flush());
  CHECK_EQ(f.log, "abc.a.b.c.b.c.a.c.a.b.a.b.c");
}

TEST(figures_belong_to_their_candidate) {
  Fixture f;
  const std::vector candidates{f.candidate("a", 1), f.candidate("b", 3)};
  const auto measured = compare(candidates, f.stopwatch, {.min_time = 0, .min_rounds = 5}, f.flush());
  CHECK_EQ(measured.size(), 2u);
  CHECK_EQ(measured[0].name, "a");
  CHECK_EQ(measured[0].wall.median, 1.0);
  CHECK_EQ(measured[0].ratio, 1.0);
  CHECK_EQ(measured[1].name, "b");
  CHECK_EQ(measured[1].wall.best, 3.0);
  CHECK_EQ(measured[1].cpu.median, 6.0);
  CHECK_EQ(measured[1].ratio, 3.0);
  CHECK_EQ(measured[1].wall.count, 5u);
}

TEST(slow_moments_of_the_machine_cancel_in_the_ratio) {
  Fixture f;
  int calls = 0;
  const std::function<void()> slow_down = [&] { f.slowness = 1 + calls++ / 2; };  // each round slower than the last
  const std::vector candidates{f.candidate("a", 1), f.candidate("b", 2)};
  const auto measured =
      compare(candidates, f.stopwatch, {.min_time = 0, .warmup_rounds = 0, .min_rounds = 9}, slow_down);
  CHECK_NEAR(measured[1].ratio, 2.0, 1e-12);
  CHECK_EQ(measured[1].wall.worst, 18.0);
}

TEST(it_runs_until_the_fastest_has_its_time) {
  Fixture f;
  const std::vector candidates{f.candidate("a", 0.25), f.candidate("b", 1)};
  const auto measured = compare(candidates, f.stopwatch, {.min_time = 2, .min_rounds = 1}, f.flush());
  CHECK_EQ(measured[0].wall.count, 8u);
  CHECK_EQ(measured[1].wall.count, 8u);
}

TEST(it_stops_at_the_greatest_number_of_rounds) {
  Fixture f;
  const std::vector candidates{f.candidate("a", 0.25)};
  const auto measured =
      compare(candidates, f.stopwatch, {.min_time = 100, .min_rounds = 1, .max_rounds = 3}, f.flush());
  CHECK_EQ(measured[0].wall.count, 3u);
}

TEST(mistakes_are_named) {
  Fixture f;
  const std::vector candidates{f.candidate("a", 1)};
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, compare({}, f.stopwatch, {}, f.flush())),
           "compare: expected at least one candidate, got none");
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, compare(candidates, f.stopwatch, {.max_rounds = 0}, f.flush())),
           "compare: max_rounds must be at least 1");
}
