#include "fma_loop.h"

namespace refiners::bench {

double fma_loop_avx512(std::int64_t iterations, float multiplier, float addend) {
  return run_fma_chains<kAvx512Bytes>(iterations, multiplier, addend);
}

}  // namespace refiners::bench
