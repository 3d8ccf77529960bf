// lora_linear for many rows: A and B are packed into panels first.
//
// Computes   y[r,o] += Σₖ d[r,k]·U[o,k],  d[r,k] = scale[a(k),r] · Σᵢ x[r,i]·D[k,i]
// Source     Hu et al. 2021, arXiv:2106.09685, equation 3.
// Layout     rows of x and y are contiguous, with any stride between them; any sizes.
// Mapping    one thread takes a range of rows, a block of them at a time; both products run through one micro-kernel:
//            a few rows, broadcast, times a panel of two vectors of columns, all sums in registers.
// Numerics   products and sums in float32, in an order that depends on neither threads nor blocks of rows: bitwise
//            deterministic. d is not rounded; y is rounded once.
#pragma once

#include "../../common/tile.h"
#include "lora_linear_config.h"
#include "lora_linear_cpu_kernel.h"

namespace refiners {
namespace {

constexpr LoraLinearCpuConfig kConfig = kLoraLinearCpuConfig;

// d[m, n] += Σₖ left[m, k] · panel[k, n] for a tile of rows and a panel.
template <class V, int kRows, int kVectors>
inline void project_tile(const float* left, int64_t left_stride, const float* panel, int64_t depth, float* d,
                         int64_t d_stride) {
  typename V::Reg sums[kRows][kVectors];
  multiply<V>(left, left_stride, panel, depth, sums);
#pragma GCC unroll 12
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) {
      float* target = d + m * d_stride + n * V::kWidth;
      V::store(target, V::add(V::load(target), sums[m][n]));
    }
  }
}

// y[m, n] += Σₖ d[m, k] · panel[k, n] for a tile of rows and the first `columns` of a panel.
template <class V, int kRows, class T>
inline void update_tile(const float* d, int64_t d_stride, const float* panel, int64_t depth, T* y, int64_t y_stride,
                        int64_t columns) {
  typename V::Reg sums[kRows][2];
  multiply<V>(d, d_stride, panel, depth, sums);
#pragma GCC unroll 12
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      T* target = y + m * y_stride + n * V::kWidth;
      const int64_t count = columns - n * V::kWidth;
      if (count >= V::kWidth) {
        V::store(target, V::add(V::load(target), sums[m][n]));
      } else if (count > 0) {
        store_partial<V>(target, V::add(load_partial<V>(target, count), sums[m][n]), count);
      }
    }
  }
}

template <class V>
inline void clear(float* p, int64_t count) {  // a multiple of a vector
  for (int64_t i = 0; i < count; i += V::kWidth) V::store(p + i, V::zero());
}

template <class V, class T>
struct LoraLinearManyRows {
  static constexpr int kRows = V::kTileRows;
  static constexpr int64_t kColumns = kPanel<V>;

  static int64_t padded_rank(const LoraLinearParams& p) { return ceil_div(p.rank, kColumns) * kColumns; }
  static int64_t packed_down_size(const LoraLinearParams& p) { return padded_rank(p) * p.in_features; }
  static int64_t packed_up_size(const LoraLinearParams& p) {
    return ceil_div(p.out_features, kColumns) * kColumns * p.rank;
  }
  static int64_t scratch_size(const LoraLinearParams& p) {
    return kConfig.row_block * padded_rank(p) + kRows * kConfig.depth_block;
  }

  // packed_down[panel][i][column] = down[panel * kColumns + column, i]
  static void pack_down(const LoraLinearParams& p, int64_t begin, int64_t end) {
    for (int64_t a = 0; a < p.adapter_count; ++a) {
      const LoraLinearAdapter& adapter = p.adapters[a];
      for (int64_t r = 0; r < adapter.rank; ++r) {
        const T* source = static_cast<const T*>(adapter.down) + r * adapter.down_row_stride;
        float* target = down_column(p, adapter.first + r);
        for (int64_t i = begin; i < end; ++i) {
          target[i * kColumns] = to_float(source + i * adapter.down_column_stride);
        }
      }
    }
    for (int64_t r = p.rank; r < padded_rank(p); ++r) {
      float* target = down_column(p, r);
      for (int64_t i = begin; i < end; ++i) target[i * kColumns] = 0.0f;
    }
  }

  static float* down_column(const LoraLinearParams& p, int64_t r) {
    return p.packed_down + r / kColumns * kColumns * p.in_features + r % kColumns;
  }

  // packed_up[panel][k][column] = up[panel * kColumns + column, k]
  static void pack_up(const LoraLinearParams& p, int64_t begin, int64_t end) {
    const int64_t padded_end = end == p.out_features ? ceil_div(end, kColumns) * kColumns : end;
    for (int64_t o = begin; o < padded_end; ++o) {
      float* target = p.packed_up + o / kColumns * kColumns * p.rank + o % kColumns;
      if (o >= p.out_features) {
        for (int64_t k = 0; k < p.rank; ++k) target[k * kColumns] = 0.0f;
        continue;
      }
      for (int64_t a = 0; a < p.adapter_count; ++a) {
        const LoraLinearAdapter& adapter = p.adapters[a];
        const T* source = static_cast<const T*>(adapter.up) + o * adapter.up_row_stride;
        for (int64_t r = 0; r < adapter.rank; ++r) {
          target[(adapter.first + r) * kColumns] = to_float(source + r * adapter.up_column_stride);
        }
      }
    }
  }

  static void update_rows(const LoraLinearParams& p, int64_t begin, int64_t end, float* scratch) {
    float* d = scratch;
    float* wide = scratch + kConfig.row_block * padded_rank(p);
    for (int64_t row = begin; row < end; row += kConfig.row_block) {
      const int64_t rows = min_of(kConfig.row_block, end - row);
      project(p, row, rows, d, wide);
      apply_scale(p, row, rows, d);
      update(p, row, rows, d);
    }
  }

  // d = x·Aᵀ for a block of rows.
  static void project(const LoraLinearParams& p, int64_t row, int64_t rows, float* d, float* wide) {
    const int64_t d_stride = padded_rank(p);
    clear<V>(d, rows * d_stride);
    for (int64_t i = 0; i < p.in_features; i += kConfig.depth_block) {
      const int64_t depth = min_of(kConfig.depth_block, p.in_features - i);
      for (int64_t m = 0; m < rows; m += kRows) {
        const int64_t count = min_of(kRows, rows - m);
        int64_t left_stride;
        const float* left = widen(p, row + m, count, i, depth, wide, left_stride);
        with_constant_rows<kRows>(count, [&]<int kCount>() {
          for (int64_t r = 0; r < p.rank; r += kColumns) {
            const float* panel = p.packed_down + r * p.in_features + i * kColumns;
            float* target = d + m * d_stride + r;
            if (p.rank - r > V::kWidth) {
              project_tile<V, kCount, 2>(left, left_stride, panel, depth, target, d_stride);
            } else {
              project_tile<V, kCount, 1>(left, left_stride, panel, depth, target, d_stride);
            }
          }
        });
      }
    }
  }

  // A tile of x in float32: x itself, or a copy in `wide`.
  static const float* widen(const LoraLinearParams& p, int64_t row, int64_t rows, int64_t i, int64_t depth, float* wide,
                            int64_t& stride) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride + i;
    if constexpr (sizeof(T) == sizeof(float)) {
      stride = p.x_stride;
      return x;
    } else {
      for (int64_t m = 0; m < rows; ++m) convert<V>(x + m * p.x_stride, wide + m * kConfig.depth_block, depth);
      stride = kConfig.depth_block;
      return wide;
    }
  }

  static void apply_scale(const LoraLinearParams& p, int64_t row, int64_t rows, float* d) {
    const int64_t d_stride = padded_rank(p);
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t a = 0; a < p.adapter_count; ++a) {
        const float scale = p.scale[a * p.scale_count + (row + m) / p.rows_per_scale];
        float* target = d + m * d_stride + p.adapters[a].first;
        for (int64_t r = 0; r < p.adapters[a].rank; ++r) target[r] *= scale;
      }
    }
  }

  // y += d·Bᵀ for a block of rows.
  static void update(const LoraLinearParams& p, int64_t row, int64_t rows, const float* d) {
    const int64_t d_stride = padded_rank(p);
    const int64_t panels = kConfig.right_block / (p.rank * kColumns);
    const int64_t width = (panels > 1 ? panels : 1) * kColumns;
    for (int64_t first = 0; first < p.out_features; first += width) {
      const int64_t last = min_of(first + width, p.out_features);
      for (int64_t m = 0; m < rows; m += kRows) {
        with_constant_rows<kRows>(min_of(kRows, rows - m), [&]<int kCount>() {
          T* y = static_cast<T*>(p.y) + (row + m) * p.y_stride;
          for (int64_t o = first; o < last; o += kColumns) {
            update_tile<V, kCount>(d + m * d_stride, d_stride, p.packed_up + o * p.rank, p.rank, y + o, p.y_stride,
                                   last - o);
          }
        });
      }
    }
  }

  static void pack_rows(const LoraLinearPackRowsParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* out = static_cast<T*>(p.out) + row * p.out_stride;
      if (p.x != nullptr) {
        __builtin_memcpy(out, static_cast<const T*>(p.x) + row * p.x_stride, p.in_features * sizeof(T));
      }
      T* d = out + p.in_features;
      for (int64_t a = 0; a < p.adapter_count; ++a) {
        const float scale = p.scale[a * p.scale_count + row / p.rows_per_scale];
        scale_row(d + p.adapters[a].first, p.adapters[a].rank, scale);
      }
      for (int64_t r = p.rank; r < p.padded_rank; ++r) d[r] = T{};
    }
  }

  static void scale_row(T* d, int64_t count, float scale) {
    const typename V::Reg factor = V::broadcast(&scale);
    for (int64_t r = 0; r < count; r += V::kWidth) {
      const int64_t some = min_of(V::kWidth, count - r);
      store_partial<V>(d + r, V::mul(load_partial<V>(d + r, some), factor), some);
    }
  }
};

}  // namespace
}  // namespace refiners
