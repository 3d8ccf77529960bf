#include "fma_loop.h"

namespace refiners::bench {

double fma_loop_portable(std::int64_t iterations, float multiplier, float addend) {
  return run_fma_chains<kPortableBytes>(iterations, multiplier, addend);
}

}  // namespace refiners::bench
