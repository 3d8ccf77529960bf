// The functions of torch that operators call, through its stable ABI: one library for every torch >= 2.11.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <vector>

#include "dtype.h"

#if defined(USE_CUDA)
// Absent from a CPU build of torch, which never calls them.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
__attribute__((weak)) AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                                               AtenTensorHandle mat1, AtenTensorHandle mat2,
                                                               double beta, double alpha);
}
#endif

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // its name in torch 2.11
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace refiners {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls an operator by its name. Every argument must be given, in the order of the schema.
template <class Result, class... Arguments>
Result call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Result>(stack[0]);
}

inline Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBfloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      return Dtype::kOther;
  }
}

inline Dtype dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

inline Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const Tensor y = call<Tensor>("aten::linear", "", x, weight, bias);
  // Autocast, seen by the inner call only: kernels write to `y` in the dtype of `x`.
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type(), "autocast is on: call refiners.ops instead of torch.ops");
  return y;
}

// out = a · bᵀ. `out` may be a slice of a wider tensor.
inline void product_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  call<Tensor>("aten::mm", "out", a, torch::stable::transpose(b, 0, 1), out);
}

// y += a · bᵀ.
inline void add_product(const Tensor& y, const Tensor& a, const Tensor& b) {
  const Tensor right = torch::stable::transpose(b, 0, 1);
#if defined(USE_CUDA)
  if (y.is_cuda()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(y.get(), y.get(), a.get(), right.get(), 1.0, 1.0));
    return;
  }
#endif
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(y.get(), y.get(), a.get(), right.get(), 1.0, 1.0));
}

}  // namespace refiners
