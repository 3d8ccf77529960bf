// Turns the status of a kernel launch into an exception that names the operator.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/headeronly/util/Exception.h>

namespace refiners {

inline void check_cuda(cudaError_t status, const char* operator_name) {
  STD_TORCH_CHECK(status == cudaSuccess, operator_name, ": ", cudaGetErrorName(status), ": ",
                  cudaGetErrorString(status));
}

}  // namespace refiners
