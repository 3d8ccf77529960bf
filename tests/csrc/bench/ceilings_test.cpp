#include "bench/ceilings.h"

#include "bench/fma_loop.h"
#include "check.h"

using namespace refiners::bench;

TEST(the_slower_of_arithmetic_and_traffic_is_the_floor) {
  const Ceiling ceiling{.flops_per_second = 100, .bytes_per_second = 10, .how = ""};
  CHECK_EQ(ceiling.floor(1000, 10), 10.0);
  CHECK_EQ(ceiling.floor(1000, 200), 20.0);
}

TEST(an_iteration_counts_a_multiply_and_an_add_per_lane_and_chain) {
  CHECK_EQ(fma_flops_per_iteration(32), 2.0 * 8 * 12);
}

// With a multiplier and an addend of 1 the chains count the iterations: all of them were run.
TEST(every_iteration_is_run) {
  CHECK_EQ(fma_loop_portable(1000, 1.0f, 1.0f), 4 * kFmaChains * 1001.0);
  CHECK_EQ(fma_loop_portable(0, 1.0f, 1.0f), 4 * kFmaChains * 1.0);
}

// Bounds that hold on any machine of this century and fail for a mistake of units or a loop that was optimised away.
TEST(the_measured_ceilings_are_plausible) {
  std::string isa;
  const double flops = measure_fma_flops(isa);
  CHECK(flops > 1e8);
  CHECK(flops < 1e14);
  CHECK(!isa.empty());
  CHECK(measure_core_fma_flops() > 1e8);
  CHECK(measure_core_fma_flops() < 2e12);
  const double bandwidth = measure_copy_bandwidth(std::size_t{16} << 20);
  CHECK(bandwidth > 1e7);
  CHECK(bandwidth < 1e13);
}
