// The CPU kernels of linear, written once over the vectors of common/vec.h.
//
// Computes   y[r,o] = bias[o] + Σᵢ x[r,i]·W[o,i]
// Layout     rows of x and y are contiguous, with any stride between them; W has rows or columns without gaps.
// Mapping    a thread takes a rectangle of y. Depth is cut into blocks: a block of x is widened to float32 once for the
//            rectangle, a panel of W on its way into the L1 cache, and the micro-kernel runs over all rows with it.
// Numerics   products and sums in float32, y is rounded once. The order of a sum depends on the depth alone: bitwise
// the
//            same with any number of threads.
#pragma once

#include "../../common/tile.h"
#include "linear_config.h"
#include "linear_cpu_kernel.h"

namespace refiners {
namespace {

constexpr LinearCpuConfig kConfig = kLinearCpuConfig;

template <class V, class T>
struct Linear {
  static constexpr int kRows = V::kTileRows;
  static constexpr int64_t kColumns = kPanel<V>;
  static_assert(kLinearGrain % kColumns == 0);

  static int64_t scratch_size(int64_t rows, int64_t columns) {
    const int64_t width = ceil_div(columns, kColumns) * kColumns;
    return rows * kConfig.depth_block + rows * width + kColumns * kConfig.depth_block;
  }

  static void compute(const LinearParams& p, const LinearTile& tile, float* scratch) {
    const int64_t width = ceil_div(tile.columns, kColumns) * kColumns;
    float* left = scratch;
    float* panel = left + tile.rows * kConfig.depth_block;
    float* sums = panel + kColumns * kConfig.depth_block;
    for (int64_t i = 0; i < p.in_features; i += kConfig.depth_block) {
      const int64_t depth = min_of(kConfig.depth_block, p.in_features - i);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const T* x = static_cast<const T*>(p.x) + (tile.row + r) * p.x_stride + i;
        convert<V>(x, left + r * kConfig.depth_block, depth);
      }
      for (int64_t c = 0; c < width; c += kColumns) {
        pack(p, tile.column + c, i, depth, panel);
        for (int64_t r = 0; r < tile.rows; r += kRows) {
          with_constant_rows<kRows>(min_of(kRows, tile.rows - r), [&]<int kCount>() {
            add_products<V, kCount>(left + r * kConfig.depth_block, kConfig.depth_block, panel, depth,
                                    sums + r * width + c, width, i == 0);
          });
        }
      }
    }
    for (int64_t r = 0; r < tile.rows; ++r) finish_row(p, tile, r, sums + r * width);
  }

  static void pack(const LinearParams& p, int64_t column, int64_t i, int64_t depth, float* panel) {
    const T* weight = static_cast<const T*>(p.weight) + column * p.weight_row_stride + i * p.weight_column_stride;
    const int64_t columns = min_of(kColumns, p.out_features - column);
    if (p.weight_column_stride == 1) {
      pack_panel<V>(weight, p.weight_row_stride, depth, columns, panel);
    } else {
      pack_transposed_panel<V>(weight, p.weight_column_stride, depth, columns, panel);
    }
  }

  static void finish_row(const LinearParams& p, const LinearTile& tile, int64_t r, const float* sums) {
    T* y = static_cast<T*>(p.y) + (tile.row + r) * p.y_stride + tile.column;
    const T* bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + tile.column;
    int64_t c = 0;
    for (; c + V::kWidth <= tile.columns; c += V::kWidth) {
      const typename V::Reg sum = V::load(sums + c);
      V::store(y + c, bias == nullptr ? sum : V::add(sum, V::load(bias + c)));
    }
    const int64_t rest = tile.columns - c;
    if (rest > 0) {
      const typename V::Reg sum = load_partial<V>(sums + c, rest);
      store_partial<V>(y + c, bias == nullptr ? sum : V::add(sum, load_partial<V>(bias + c, rest)), rest);
    }
  }
};

// For a few rows: dot products along the rows of W, a few of them at once.
template <class V, class T, int kRows>
struct LinearFewRows {
  static constexpr int kCount = kRows > 2 ? 2 : 4;

  static void compute(const LinearParams& p, int64_t begin, int64_t end) {
    int64_t o = begin;
    for (; o + kCount <= end; o += kCount) compute_columns<kCount>(p, o);
    for (; o < end; ++o) compute_columns<1>(p, o);
  }

  template <int kSome>
  static void compute_columns(const LinearParams& p, int64_t o) {
    const T* weight = static_cast<const T*>(p.weight) + o * p.weight_row_stride;
    float sums[kRows][kSome];
    multiply_rows<V>(static_cast<const T*>(p.x), p.x_stride, weight, p.weight_row_stride, p.in_features, sums);
    for (int n = 0; n < kSome; ++n) {
      const float bias = p.bias == nullptr ? 0.0f : to_float(static_cast<const T*>(p.bias) + o + n);
      for (int m = 0; m < kRows; ++m) sums[m][n] += bias;
    }
    for (int m = 0; m < kRows; ++m) {
      from_float(sums[m], static_cast<T*>(p.y) + m * p.y_stride + o, kSome);
    }
  }

  static void from_float(const float* from, T* to, int64_t count) {
    store_partial<V>(to, load_partial<V>(from, count), count);
  }
};

// Calls the member of the kernels for the dtype of the parameters.
#define REFINERS_FOR_16_BIT(p, expression)   \
  if ((p).dtype == Dtype::kBfloat16) {       \
    using T = Bfloat16;                      \
    expression;                              \
  } else if ((p).dtype == Dtype::kFloat16) { \
    using T = Float16;                       \
    expression;                              \
  }

template <class V>
constexpr LinearCpuKernels make_linear_kernels() {
  return {
      Linear<V, Bfloat16>::scratch_size,  // the same for each dtype
      [](const LinearParams& p, const LinearTile& tile, float* scratch) {
        REFINERS_FOR_16_BIT(p, (Linear<V, T>::compute(p, tile, scratch)))
      },
      [](const LinearParams& p, int64_t begin, int64_t end) {
        REFINERS_FOR_16_BIT(p, (with_constant_rows<kLinearFewRows>(
                                   p.rows, [&]<int kRows>() { LinearFewRows<V, T, kRows>::compute(p, begin, end); })))
      },
  };
}

}  // namespace
}  // namespace refiners
