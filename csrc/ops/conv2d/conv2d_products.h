// A convolution as a product of matrices, of which the left one, pixels by elements of a kernel, is never written down.
//
// Computes   y[r,o] = Σₜ Σᵢ x[pixel(r,t),i]·W[o,i,t] over the taps t of the kernel
// Layout     the channels of x and y, and those of the weights, lie next to each other.
// Mapping    a thread takes a rectangle of y: pixels by output channels. A part of the channels of one tap at a time is
//            widened to float32, zeros outside of the image; a panel of the weights on its way into the L1 cache.
// Numerics   products and sums in float32, y is rounded once; bitwise the same with any number of threads.
#pragma once

#include "conv2d_config.h"
#include "conv2d_pixels.h"

namespace refiners {
namespace {

template <class V, class T>
struct Conv2dProducts {
  using Pixels = Conv2dPixels<T>;
  static constexpr int kRows = V::kTileRows;
  static constexpr int64_t kColumns = kPanel<V>;
  static constexpr int64_t kDepth = kConv2dCpuConfig.product_depth;

  static int64_t scratch_size(int64_t rows, int64_t columns) {
    const int64_t width = ceil_div(columns, kColumns) * kColumns;
    return rows * kDepth + rows * width + kColumns * kDepth;
  }

  static void compute(const Conv2dParams& p, const Conv2dTile& tile, float* scratch) {
    const int64_t width = ceil_div(tile.columns, kColumns) * kColumns, channels = conv2d_depth(p);
    float* left = scratch;
    float* panel = left + tile.rows * kDepth;
    float* sums = panel + kColumns * kDepth;
    bool first = true;
    for (int64_t tap = 0; tap < conv2d_taps(p); ++tap) {
      for (int64_t i = 0; i < channels; i += kDepth) {
        const int64_t depth = min_of(kDepth, channels - i);
        for (int64_t r = 0; r < tile.rows; ++r) widen(p, tile, tile.row + r, tap, i, depth, left + r * kDepth);
        for (int64_t c = 0; c < width; c += kColumns) {
          const int64_t out = tile.group * (p.out_channels / p.groups) + tile.column + c;
          const T* weight = static_cast<const T*>(p.weight) + (out * conv2d_taps(p) + tap) * channels + i;
          pack_panel<V>(weight, conv2d_taps(p) * channels, depth, min_of(kColumns, tile.columns - c), panel);
          for (int64_t r = 0; r < tile.rows; r += kRows) {
            with_constant_rows<kRows>(min_of(kRows, tile.rows - r), [&]<int kCount>() {
              add_products<V, kCount>(left + r * kDepth, kDepth, panel, depth, sums + r * width + c, width, first);
            });
          }
        }
        first = false;
      }
    }
    for (int64_t r = 0; r < tile.rows; ++r) finish_row(p, tile, tile.row + r, sums + r * width);
  }

  static void widen(const Conv2dParams& p, const Conv2dTile& tile, int64_t row, int64_t tap, int64_t i, int64_t depth,
                    float* to) {
    const int64_t area = p.out_height * p.out_width, y = row % area / p.out_width, x = row % p.out_width;
    const T* pixel = Pixels::of_x(p, row / area, y * p.stride[0] + tap / p.kernel[1] * p.dilation[0] - p.padding[0],
                                  x * p.stride[1] + tap % p.kernel[1] * p.dilation[1] - p.padding[1]);
    if (pixel != nullptr) {
      convert<V>(pixel + tile.group * conv2d_depth(p) + i, to, depth);
    } else {
      for (int64_t k = 0; k < depth; ++k) to[k] = 0.0f;
    }
  }

  static void finish_row(const Conv2dParams& p, const Conv2dTile& tile, int64_t row, const float* sums) {
    const int64_t out = tile.group * (p.out_channels / p.groups) + tile.column;
    for (int64_t c = 0; c < tile.columns; c += V::kWidth) {
      conv2d_finish<V, T>(p, row / (p.out_height * p.out_width), row * p.out_channels, out + c, tile.columns - c,
                          V::load(sums + c));
    }
  }
};

}  // namespace
}  // namespace refiners
