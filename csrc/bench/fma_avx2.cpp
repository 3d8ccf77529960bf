#include "fma_loop.h"

namespace refiners::bench {

double fma_loop_avx2(std::int64_t iterations, float multiplier, float addend) {
  return run_fma_chains<kAvx2Bytes>(iterations, multiplier, addend);
}

}  // namespace refiners::bench
