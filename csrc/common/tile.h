// What kernels that multiply matrices share: the micro-kernel, and the ways of a matrix into it.
//
// Like vec.h in an unnamed namespace, for files with flags of their own.
#pragma once

#include "vec.h"

namespace refiners {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns that the micro-kernel works on at once.
template <class V>
constexpr int64_t kPanel = 2 * V::kWidth;

// Calls f with `rows` as a constant, for rows in [1, kMax].
template <int kMax, class F>
inline void with_constant_rows(int64_t rows, const F& f) {
  if constexpr (kMax > 1) {
    if (rows != kMax) return with_constant_rows<kMax - 1>(rows, f);
  }
  f.template operator()<kMax>();
}

// sums[m][n] = Σₖ left[m, k] · panel[k, n], for k in [0, depth).
template <class V, int kRows, int kVectors>
inline void multiply(const float* left, int64_t left_stride, const float* panel, int64_t depth,
                     typename V::Reg (&sums)[kRows][kVectors]) {
#pragma GCC unroll 12  // constant indices keep the sums in registers, here and wherever they are read
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) sums[m][n] = V::zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename V::Reg right[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) right[n] = V::load(panel + k * kPanel<V> + n * V::kWidth);
#pragma GCC unroll 12
    for (int m = 0; m < kRows; ++m) {
      const typename V::Reg l = V::broadcast(left + m * left_stride + k);
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sums[m][n] = V::fma(l, right[n], sums[m][n]);
    }
  }
}

// sums[m, n] += Σₖ left[m, k] · panel[k, n] for kRows rows and a panel; the first time, =.
template <class V, int kRows>
inline void add_products(const float* left, int64_t left_stride, const float* panel, int64_t depth, float* sums,
                         int64_t stride, bool first) {
  typename V::Reg products[kRows][2];
  multiply<V>(left, left_stride, panel, depth, products);
#pragma GCC unroll 12
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      float* sum = sums + m * stride + n * V::kWidth;
      V::store(sum, first ? products[m][n] : V::add(V::load(sum), products[m][n]));
    }
  }
}

template <class V, class T>
inline void convert(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) V::store(to + i, V::load(from + i));
  for (; i < count; ++i) to[i] = to_float(from + i);
}

// sums[m][n] = Σᵢ left[m, i] · right[n, i], for i in [0, depth): dot products along rows, as they lie.
template <class V, int kRows, int kCount, class T>
inline void multiply_rows(const T* left, int64_t left_stride, const T* right, int64_t right_stride, int64_t depth,
                          float (&sums)[kRows][kCount]) {
  typename V::Reg totals[kRows][kCount];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kCount; ++n) totals[m][n] = V::zero();
  }
  const auto add_products = [&](const auto& load, int64_t i) __attribute__((always_inline)) {
    typename V::Reg r[kCount];
#pragma GCC unroll 4
    for (int n = 0; n < kCount; ++n) r[n] = load(right + n * right_stride + i);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const typename V::Reg l = load(left + m * left_stride + i);
#pragma GCC unroll 4
      for (int n = 0; n < kCount; ++n) totals[m][n] = V::fma(l, r[n], totals[m][n]);
    }
  };
  int64_t i = 0;
  for (; i + V::kWidth <= depth; i += V::kWidth) {
    add_products([](const T* from) __attribute__((always_inline)) { return V::load(from); }, i);
  }
  const int64_t rest = depth - i;
  if (rest > 0) {
    add_products([rest](const T* from) __attribute__((always_inline)) { return load_partial<V>(from, rest); }, i);
  }
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kCount; ++n) sums[m][n] = V::sum(totals[m][n]);
  }
}

// panel[k][n] = right[n, k] in float32, for k in [0, depth) and the `columns` of a panel, zeros in those beyond.
template <class V, class T>
inline void pack_panel(const T* right, int64_t row_stride, int64_t depth, int64_t columns, float* panel) {
  for (int64_t n = 0; n < kPanel<V>; n += V::kWidth) {
    const int64_t count = columns - n;
    int64_t k = 0;
    if (count > 0) {
      for (; k + V::kWidth <= depth; k += V::kWidth) {
        typename V::Reg square[V::kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < V::kWidth; ++i) {
          square[i] = i < count ? V::load(right + (n + i) * row_stride + k) : V::zero();
        }
        V::transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < V::kWidth; ++i) V::store(panel + (k + i) * kPanel<V> + n, square[i]);
      }
    }
    for (; k < depth; ++k) {
      for (int64_t i = 0; i < V::kWidth; ++i) {
        panel[k * kPanel<V> + n + i] = i < count ? to_float(right + (n + i) * row_stride + k) : 0.0f;
      }
    }
  }
}

// The same for a matrix that is stored the other way round: right[n, k] at n + k · column_stride.
template <class V, class T>
inline void pack_transposed_panel(const T* right, int64_t column_stride, int64_t depth, int64_t columns, float* panel) {
  for (int64_t k = 0; k < depth; ++k) {
    const T* from = right + k * column_stride;
    float* to = panel + k * kPanel<V>;
    for (int64_t n = 0; n < kPanel<V>; n += V::kWidth) {
      const int64_t count = columns - n;
      if (count >= V::kWidth) {
        V::store(to + n, V::load(from + n));
      } else {
        V::store(to + n, count > 0 ? load_partial<V>(from + n, count) : V::zero());
      }
    }
  }
}

}  // namespace
}  // namespace refiners
