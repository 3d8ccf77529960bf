// Winograd's algorithm for 3 x 3 kernels with a stride of 1: 2.25 times fewer products than the formula.
//
// Computes   Y = Aᵀ[Σᵢ (G·gᵢ·Gᵀ) ⊙ (Bᵀ·dᵢ·B)]A for each square of the result, with the transforms of
// conv2d_transforms.h Source     Lavin and Gray 2015, arXiv:1509.09308, algorithm 1. Layout     channels of x, y and
// what is added lie next to each other; weights in either order. Mapping    squares are cut into blocks. The spectrum
// of a block, Bᵀ·d·B, is computed once, shared by all threads, and
//            laid out as the products read it. A thread takes a few output channels of a block: it transforms a part of
//            their weights, multiplies, and goes on with the next input channels; the sums stay in the L2 cache.
// Numerics   float32 between the first load and the last store, in an order that depends on the channels alone: bitwise
//            the same with any number of threads and samples. The transforms mix the pixels of a square: one that is
//            not finite would spread to its neighbours, so that squares with such results follow the formula instead.
#pragma once

#include "conv2d_config.h"
#include "conv2d_pixels.h"
#include "conv2d_transforms.h"

namespace refiners {
namespace {

template <class V, class T>
struct Conv2dWinograd {
  using Reg = typename V::Reg;
  using Pixels = Conv2dPixels<T>;
  using W = Winograd<V>;
  static constexpr int kOut = W::kOut, kIn = W::kIn, kPoints = kIn * kIn;
  static constexpr int64_t kDepth = kConv2dCpuConfig.depth_block;
  static constexpr int64_t kSquares = kConv2dCpuConfig.squares;
  static constexpr int64_t kColumns = kConv2dCpuConfig.winograd_columns;
  static_assert(kDepth % V::kWidth == 0 && kColumns % kPanel<V> == 0 && kDepth == kConv2dGrain);

  struct Square {
    int64_t sample, row, column;  // of its first pixel
  };

  static Square square_of(const Conv2dParams& p, int64_t index) {
    const int64_t across = ceil_div(p.out_width, kOut), down = ceil_div(p.out_height, kOut);
    const int64_t sample = index / (across * down), place = index % (across * down);
    return {sample, place / across * kOut, place % across * kOut};
  }

  // spectrum[part of the channels][point][square][channel of the part]
  static int64_t spectrum_size(const Conv2dParams& p) {
    return ceil_div(p.in_channels, kDepth) * kPoints * kSquares * kDepth;
  }

  static int64_t scratch_size() { return kPoints * (kSquares + kDepth) * kColumns; }

  static void transform(const Conv2dParams& p, const Conv2dSquares& block, int64_t begin, int64_t end,
                        float* spectrum) {
    for (int64_t s = 0; s < block.count; ++s) {
      const Square square = square_of(p, block.first + s);
      const T* pixels[kIn][kIn];
      for (int i = 0; i < kIn; ++i) {
        for (int j = 0; j < kIn; ++j) {
          pixels[i][j] =
              Pixels::of_x(p, square.sample, square.row + i - p.padding[0], square.column + j - p.padding[1]);
        }
      }
      for (int64_t c = begin; c < end; c += V::kWidth) {
        float* target = spectrum + (c / kDepth * kPoints * kSquares + s) * kDepth + c % kDepth;
        transform_vector(pixels, c, min_of(V::kWidth, end - c), target);
      }
    }
  }

  static void transform_vector(const T* const (&pixels)[kIn][kIn], int64_t c, int64_t count, float* target) {
    Reg rows[kIn][kIn];
    for (int i = 0; i < kIn; ++i) {
      Reg d[kIn];
      for (int j = 0; j < kIn; ++j) {
        const T* pixel = pixels[i][j];
        d[j] = pixel == nullptr     ? V::zero()
               : count == V::kWidth ? V::load(pixel + c)
                                    : load_partial<V>(pixel + c, count);
      }
      W::input(d, rows[i]);
    }
    for (int j = 0; j < kIn; ++j) {
      Reg d[kIn], v[kIn];
      for (int i = 0; i < kIn; ++i) d[i] = rows[i][j];
      W::input(d, v);
      for (int i = 0; i < kIn; ++i) V::store(target + (i * kIn + j) * kSquares * kDepth, v[i]);
    }
  }

  static void compute(const Conv2dParams& p, const Conv2dSquares& block, const float* spectrum, int64_t column,
                      int64_t columns, float* scratch) {
    float* sums = scratch;                                     // [point][square][column]
    float* weights = scratch + kPoints * kSquares * kColumns;  // [point][panel][channel][column of the panel]
    for (int64_t k = 0; k < p.in_channels; k += kDepth) {
      const int64_t depth = min_of(kDepth, p.in_channels - k);
      for (int64_t c = 0; c < ceil_div(columns, kPanel<V>) * kPanel<V>; c += V::kWidth) {
        float* target = weights + (c / kPanel<V> * kDepth) * kPanel<V> + c % kPanel<V>;
        transform_weights(p, column + c, min_of(V::kWidth, columns - c), k, depth, target);
      }
      const float* left = spectrum + k * kPoints * kSquares;
      for (int point = 0; point < kPoints; ++point) {
        for (int64_t c = 0; c < columns; c += kPanel<V>) {
          const float* panel = weights + (point * kColumns + c) * kDepth;
          for (int64_t s = 0; s < block.count; s += V::kTileRows) {
            float* target = sums + (point * kSquares + s) * kColumns + c;
            with_constant_rows<V::kTileRows>(min_of(V::kTileRows, block.count - s), [&]<int kCount>() {
              add_products<V, kCount>(left + (point * kSquares + s) * kDepth, kDepth, panel, depth, target, kColumns,
                                      k == 0);
            });
          }
        }
      }
    }
    for (int64_t s = 0; s < block.count; ++s) {
      const Square square = square_of(p, block.first + s);
      for (int64_t c = 0; c < columns; c += V::kWidth) {
        finish(p, square, column + c, min_of(V::kWidth, columns - c), sums + s * kColumns + c);
      }
    }
  }

  // The weights of `count` output channels and `depth` input channels from k on, at all points; zeros beyond `count`.
  static void transform_weights(const Conv2dParams& p, int64_t column, int64_t count, int64_t k, int64_t depth,
                                float* target) {
    const T* weight = static_cast<const T*>(p.weight) + column * 9 * p.in_channels;
    for (int64_t i = 0; i < depth; i += V::kWidth) {
      const int64_t some = min_of(V::kWidth, depth - i);
      Reg g[9 * V::kWidth];  // [place][channel], or the other way round, as the weights lie
      if (p.weight_by_channel) {
        for (int place = 0; place < 9; ++place) {
          load_square(weight + place * p.in_channels + k + i, 9 * p.in_channels, count, some, g + place * V::kWidth);
        }
      } else {
        for (int part = 0; part < 9; ++part) {
          const int64_t rest = 9 * some - part * V::kWidth;
          if (rest <= 0) break;
          load_square(weight + (k + i) * 9 + part * V::kWidth, 9 * p.in_channels, count, min_of(V::kWidth, rest),
                      g + part * V::kWidth);
        }
      }
      const int64_t step = p.weight_by_channel ? V::kWidth : 1, stride = p.weight_by_channel ? 1 : 9;
      for (int64_t j = 0; j < some; ++j) transform_kernel(g + j * stride, step, target + (i + j) * kPanel<V>);
    }
  }

  // columns[j][n] = from[n · stride + j]: a square of elements with its sides exchanged, zeros for n >= rows.
  static void load_square(const T* from, int64_t stride, int64_t rows, int64_t count, Reg* columns) {
    Reg square[V::kWidth];
    for (int n = 0; n < V::kWidth; ++n) {
      const T* row = from + n * stride;
      square[n] = n >= rows ? V::zero() : count == V::kWidth ? V::load(row) : load_partial<V>(row, count);
    }
    V::transpose(square);
    for (int j = 0; j < V::kWidth; ++j) columns[j] = square[j];
  }

  static void transform_kernel(const Reg* g, int64_t step, float* target) {
    Reg rows[3][kIn];
    for (int i = 0; i < 3; ++i) {
      const Reg row[3] = {g[3 * i * step], g[(3 * i + 1) * step], g[(3 * i + 2) * step]};
      W::kernel(row, rows[i]);
    }
    for (int j = 0; j < kIn; ++j) {
      const Reg column[3] = {rows[0][j], rows[1][j], rows[2][j]};
      Reg u[kIn];
      W::kernel(column, u);
      for (int i = 0; i < kIn; ++i) V::store(target + (i * kIn + j) * kColumns * kDepth, u[i]);
    }
  }

  static void finish(const Conv2dParams& p, const Square& square, int64_t column, int64_t count, const float* sums) {
    Reg rows[kIn][kOut];
    for (int i = 0; i < kIn; ++i) {
      Reg m[kIn];
      for (int j = 0; j < kIn; ++j) m[j] = V::load(sums + (i * kIn + j) * kSquares * kColumns);
      W::output(m, rows[i]);
    }
    Reg y[kOut][kOut];
    Reg check = V::zero();  // 0 · y: not a number where y is not finite
    for (int j = 0; j < kOut; ++j) {
      Reg m[kIn], column_of_y[kOut];
      for (int i = 0; i < kIn; ++i) m[i] = rows[i][j];
      W::output(m, column_of_y);
      for (int i = 0; i < kOut; ++i) {
        y[i][j] = column_of_y[i];
        check = V::fma(V::zero(), column_of_y[i], check);
      }
    }
    float checks[V::kWidth];
    V::store(checks, check);
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) finite = finite && checks[i] == 0.0f;
    for (int i = 0; i < kOut && square.row + i < p.out_height; ++i) {
      for (int j = 0; j < kOut && square.column + j < p.out_width; ++j) {
        const int64_t row = square.row + i, place = square.column + j;
        const Reg result = finite ? y[i][j] : follow_formula(p, square.sample, row, place, column, count);
        conv2d_finish<V, T>(p, square.sample, Pixels::index_of_y(p, square.sample, row, place), column, count, result);
      }
    }
  }

  static Reg follow_formula(const Conv2dParams& p, int64_t sample, int64_t row, int64_t place, int64_t column,
                            int64_t count) {
    const int64_t channel_stride = p.weight_by_channel ? 1 : 9, place_stride = p.weight_by_channel ? p.in_channels : 1;
    float sums[V::kWidth] = {};
    for (int64_t n = 0; n < count; ++n) {
      const T* weight = static_cast<const T*>(p.weight) + (column + n) * 9 * p.in_channels;
      for (int tap = 0; tap < 9; ++tap) {
        const T* pixel = Pixels::of_x(p, sample, row + tap / 3 - p.padding[0], place + tap % 3 - p.padding[1]);
        if (pixel == nullptr) continue;
        for (int64_t c = 0; c < p.in_channels; ++c) {
          sums[n] += to_float(pixel + c) * to_float(weight + tap * place_stride + c * channel_stride);
        }
      }
    }
    return V::load(sums);
  }
};

}  // namespace
}  // namespace refiners
