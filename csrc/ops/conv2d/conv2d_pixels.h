// What the kernels of conv2d share: where a pixel and a weight lie, and what is done with a finished sum.
#pragma once

#include "../../common/tile.h"
#include "../../common/vec_math.h"
#include "conv2d_cpu_kernel.h"

namespace refiners {
namespace {

template <class T>
struct Conv2dPixels {
  // The channels of a pixel; null outside of the image, where all are zero.
  static const T* of_x(const Conv2dParams& p, int64_t sample, int64_t row, int64_t column) {
    if (row < 0 || row >= p.height || column < 0 || column >= p.width) return nullptr;
    return static_cast<const T*>(p.x) + sample * p.x_sample_stride + row * p.x_row_stride + column * p.x_pixel_stride;
  }

  static int64_t index_of_y(const Conv2dParams& p, int64_t sample, int64_t row, int64_t column) {
    return ((sample * p.out_height + row) * p.out_width + column) * p.out_channels;
  }
};

inline int64_t conv2d_depth(const Conv2dParams& p) { return p.in_channels / p.groups; }  // channels of a group
inline int64_t conv2d_taps(const Conv2dParams& p) { return p.kernel[0] * p.kernel[1]; }

// y[pixel, column...] = silu?(sums + bias + add + residual) for the first `count` elements of a vector; `pixel` is its
// index in y. Gives the sums with what was added.
template <class V, class T>
inline void conv2d_finish(const Conv2dParams& p, int64_t sample, int64_t pixel, int64_t column, int64_t count,
                          typename V::Reg sums) {
  const bool whole = count >= V::kWidth;
  const auto load = [&](const void* from, int64_t i) __attribute__((always_inline)) {
    const T* values = static_cast<const T*>(from) + i;
    return whole ? V::load(values) : load_partial<V>(values, count);
  };
  if (p.bias != nullptr) sums = V::add(sums, load(p.bias, column));
  if (p.add != nullptr) sums = V::add(sums, load(p.add, sample * p.out_channels + column));
  if (p.residual != nullptr) sums = V::add(sums, load(p.residual, pixel + column));
  if (p.silu) sums = V::mul(sums, sigmoid<V>(sums));
  T* y = static_cast<T*>(p.y) + pixel + column;
  if (whole) {
    V::store(y, sums);
  } else {
    store_partial<V>(y, sums, count);
  }
}

}  // namespace
}  // namespace refiners
