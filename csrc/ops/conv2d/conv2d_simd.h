// The table of the CPU kernels of conv2d, for the vectors of an instruction set and all dtypes.
#pragma once

#include "conv2d_products.h"
#include "conv2d_winograd.h"

namespace refiners {
namespace {

// Calls f with the type of the elements.
template <class F>
inline void with_conv2d_dtype(const Conv2dParams& p, const F& f) {
  if (p.dtype == Dtype::kFloat32) {
    f.template operator()<float>();
  } else if (p.dtype == Dtype::kBfloat16) {
    f.template operator()<Bfloat16>();
  } else {
    f.template operator()<Float16>();
  }
}

template <class V>
constexpr Conv2dCpuKernels make_conv2d_kernels() {
  return {
      Conv2dWinograd<V, float>::spectrum_size,  // the same for each dtype
      Conv2dWinograd<V, float>::scratch_size,
      [](const Conv2dParams& p, const Conv2dSquares& block, int64_t begin, int64_t end, float* spectrum) {
        with_conv2d_dtype(p, [&]<class T>() { Conv2dWinograd<V, T>::transform(p, block, begin, end, spectrum); });
      },
      [](const Conv2dParams& p, const Conv2dSquares& block, const float* spectrum, int64_t column, int64_t columns,
         float* scratch) {
        with_conv2d_dtype(
            p, [&]<class T>() { Conv2dWinograd<V, T>::compute(p, block, spectrum, column, columns, scratch); });
      },
      Conv2dProducts<V, float>::scratch_size,
      [](const Conv2dParams& p, const Conv2dTile& tile, float* scratch) {
        with_conv2d_dtype(p, [&]<class T>() { Conv2dProducts<V, T>::compute(p, tile, scratch); });
      },
  };
}

}  // namespace
}  // namespace refiners
