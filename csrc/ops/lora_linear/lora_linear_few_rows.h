// lora_linear for a few rows: A and B are read once and as they lie. To pack them would cost more than the products.
//
// Computes   as lora_linear_many_rows.h.
// Layout     rows of x, y, A and B are contiguous, with any stride between them; any sizes.
// Mapping    d: dot products along the rows of A, a few of them with all rows of x at once. y: dot products along the
//            rows of B, a vector of them at a time. Threads share the rows of A, then those of B.
// Numerics   products and sums in float32, in an order that does not depend on threads. d is not rounded; y is once, on
// top of what the layer gave.
#pragma once

#include "../../common/tile.h"
#include "lora_linear_config.h"
#include "lora_linear_cpu_kernel.h"

namespace refiners {
namespace {

template <class V, class T, int kRows>
struct LoraLinearFewRows {
  static constexpr int kRanks = kRows > 2 ? 2 : 4;  // rows of A at once: at most 8 sums

  static int64_t padded(int64_t rank) { return ceil_div(rank, V::kWidth) * V::kWidth; }

  // One row of d: each adapter begins on a vector of its own, and zeros end it.
  static int64_t d_stride(const LoraLinearParams& p) {
    int64_t stride = 0;
    for (int64_t a = 0; a < p.adapter_count; ++a) stride += padded(p.adapters[a].rank);
    return stride;
  }

  // d[m, k] = scale · Σᵢ x[m, i]·A[k, i] for the columns k in [begin, end) of all adapters together.
  static void project(const LoraLinearParams& p, int64_t begin, int64_t end, float* d) {
    const int64_t stride = d_stride(p);
    float* target = d;
    for (int64_t a = 0; a < p.adapter_count; ++a) {
      const LoraLinearAdapter& adapter = p.adapters[a];
      int64_t r = begin > adapter.first ? begin - adapter.first : 0;
      const int64_t last = end < adapter.first + adapter.rank ? end - adapter.first : adapter.rank;
      for (; r + kRanks <= last; r += kRanks) project_rows<kRanks>(p, a, r, target + r, stride);
      for (; r < last; ++r) project_rows<1>(p, a, r, target + r, stride);
      if (begin < adapter.first + adapter.rank && last == adapter.rank) clear_padding(adapter.rank, target, stride);
      target += padded(adapter.rank);
    }
  }

  static void clear_padding(int64_t rank, float* target, int64_t stride) {
    for (int m = 0; m < kRows; ++m) {
      for (int64_t r = rank; r < padded(rank); ++r) target[m * stride + r] = 0.0f;
    }
  }

  template <int kCount>
  static void project_rows(const LoraLinearParams& p, int64_t a, int64_t r, float* target, int64_t stride) {
    const LoraLinearAdapter& adapter = p.adapters[a];
    const T* x = static_cast<const T*>(p.x);
    const T* down = static_cast<const T*>(adapter.down) + r * adapter.down_row_stride;
    float sums[kRows][kCount];
    multiply_rows<V>(x, p.x_stride, down, adapter.down_row_stride, p.in_features, sums);
    for (int m = 0; m < kRows; ++m) {
      const float scale = p.scale[a * p.scale_count + m / p.rows_per_scale];
      for (int n = 0; n < kCount; ++n) target[m * stride + n] = scale * sums[m][n];
    }
  }

  // y[m, o] += Σₖ d[m, k]·B[o, k] for the outputs o in [begin, end).
  static void update(const LoraLinearParams& p, int64_t begin, int64_t end, const float* d) {
    const int64_t stride = d_stride(p);
    for (int64_t o = begin; o < end; o += V::kWidth) {
      const int64_t count = end - o < V::kWidth ? end - o : V::kWidth;
      float sums[kRows][V::kWidth] = {};
      for (int64_t n = 0; n < count; ++n) update_output(p, o + n, d, stride, n, sums);
      for (int m = 0; m < kRows; ++m) {
        T* y = static_cast<T*>(p.y) + m * p.y_stride + o;
        const typename V::Reg sum = V::load(sums[m]);
        if (count == V::kWidth) {
          V::store(y, V::add(V::load(y), sum));
        } else {
          store_partial<V>(y, V::add(load_partial<V>(y, count), sum), count);
        }
      }
    }
  }

  static void update_output(const LoraLinearParams& p, int64_t o, const float* d, int64_t stride, int64_t n,
                            float (&sums)[kRows][V::kWidth]) {
    typename V::Reg sum[kRows];
    for (int m = 0; m < kRows; ++m) sum[m] = V::zero();
    for (int64_t a = 0; a < p.adapter_count; ++a) {
      const LoraLinearAdapter& adapter = p.adapters[a];
      const T* up = static_cast<const T*>(adapter.up) + o * adapter.up_row_stride;
      for (int64_t k = 0; k < adapter.rank; k += V::kWidth) {
        const int64_t rest = adapter.rank - k;
        const typename V::Reg right = rest >= V::kWidth ? V::load(up + k) : load_partial<V>(up + k, rest);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) sum[m] = V::fma(V::load(d + m * stride + k), right, sum[m]);
      }
      d += padded(adapter.rank);
    }
    for (int m = 0; m < kRows; ++m) sums[m][n] = V::sum(sum[m]);
  }
};

}  // namespace
}  // namespace refiners
