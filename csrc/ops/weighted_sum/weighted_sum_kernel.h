// The CUDA kernel of weighted_sum: its launch. Knows neither torch nor Python.
#pragma once

#include <cuda_runtime_api.h>

#include "weighted_sum_config.h"

namespace refiners {

// y = Σ factor · tensor.
cudaError_t launch_weighted_sum(const WeightedSumParams& p, cudaStream_t stream);

// cudaSuccess if the current device can run the kernel: not where the build has no code for it, or its driver is too
// old.
cudaError_t probe_weighted_sum();

}  // namespace refiners
