// The CPU kernels of group_norm, written once over the vectors of common/vec.h.
//
// Computes   y = silu((x + add - mean) / √(variance + eps) · weight + bias), mean and variance over each group
// Source     Wu and He 2018, arXiv:1803.08494, equations 1, 2, 6 and 7.
// Layout     channels first or last, without gaps; any sizes.
// Mapping    x is read twice: `measure` finds mean and squared distances of pieces that stay in the cache between the
//            two passes over them, and the caller merges them; `apply` is one multiply-add, a SiLU if wanted.
// Numerics   float32, rounded once. The pieces depend on the shape alone: bitwise the same with any number of threads.
#pragma once

#include "../../common/vec_math.h"
#include "group_norm_cpu_kernel.h"

namespace refiners {
namespace {

template <class V, class T>
struct GroupNorm {
  using Reg = typename V::Reg;
  static constexpr int64_t kRun = 4096;  // elements of a channel that are measured at once

  static void measure(const GroupNormParams& p, int64_t begin, int64_t end, float* scratch) {
    for (int64_t unit = begin; unit < end; ++unit) {
      if (p.channels_last) {
        measure_chunk(p, unit, scratch);
      } else {
        measure_channel(p, unit);
      }
    }
  }

  // --- channels last
  // ---------------------------------------------------------------------------------------------------

  static void measure_chunk(const GroupNormParams& p, int64_t unit, float* scratch) {
    const int64_t sample = unit / p.chunks;
    const GroupNormChunk chunk = group_norm_chunk(p, unit % p.chunks);
    const T* x = static_cast<const T*>(p.x) + (sample * p.pixels + chunk.first) * p.channels;
    float *means = scratch, *squares = scratch + p.channels;
    int64_t c = 0;
    for (; c + 4 * V::kWidth <= p.channels; c += 4 * V::kWidth) {
      measure_columns<4>(x + c, p.channels, chunk.count, V::kWidth, means + c, squares + c);
    }
    for (; c < p.channels; c += V::kWidth) {
      const int64_t left = p.channels - c;
      measure_columns<1>(x + c, p.channels, chunk.count, left < V::kWidth ? left : V::kWidth, means + c, squares + c);
    }
    const float* add = p.add == nullptr ? nullptr : p.add + sample * p.channels;
    GroupNormCell* cells = p.cells + unit * p.groups;
    const int64_t size = p.channels / p.groups;
    for (int64_t g = 0; g < p.groups; ++g) {
      cells[g] = merge_columns(means + g * size, squares + g * size, add == nullptr ? nullptr : add + g * size, size,
                               chunk.count);
    }
  }

  // Mean and squared distances of some columns; `columns` of the only vector are there.
  template <int kVectors>
  static void measure_columns(const T* x, int64_t stride, int64_t rows, int64_t columns, float* means, float* squares) {
    const auto load = [&](const T* from) __attribute__((always_inline)) {
      return kVectors > 1 || columns == V::kWidth ? V::load(from) : load_partial<V>(from, columns);
    };
    Reg mean[kVectors], sums[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      mean[v] = load(x + v * V::kWidth);  // distances from the first row: a far mean costs no precision
      sums[v] = V::zero();
    }
    for (int64_t r = 1; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[v] = V::add(sums[v], V::sub(load(x + r * stride + v * V::kWidth), mean[v]));
      }
    }
    const Reg share = V::set(1.0f / static_cast<float>(rows));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      mean[v] = V::fma(sums[v], share, mean[v]);
      sums[v] = V::zero();
    }
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Reg distance = V::sub(load(x + r * stride + v * V::kWidth), mean[v]);
        sums[v] = V::fma(distance, distance, sums[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store_partial<V>(means + v * V::kWidth, mean[v], columns);
      store_partial<V>(squares + v * V::kWidth, sums[v], columns);
    }
  }

  // Of all columns of a group, `rows` elements each.
  static GroupNormCell merge_columns(const float* means, const float* squares, const float* add, int64_t columns,
                                     int64_t rows) {
    const auto mean_of = [&](int64_t c) { return means[c] + (add == nullptr ? 0.0f : add[c]); };
    const float first = mean_of(0);
    float sum = 0.0f, total = 0.0f;
    for (int64_t c = 1; c < columns; ++c) sum += mean_of(c) - first;
    const float mean = first + sum / static_cast<float>(columns);
    for (int64_t c = 0; c < columns; ++c) {
      const float distance = mean_of(c) - mean;
      total += squares[c] + distance * distance * static_cast<float>(rows);
    }
    return {mean, total};
  }

  // --- channels first
  // --------------------------------------------------------------------------------------------------

  static void measure_channel(const GroupNormParams& p, int64_t unit) {
    const T* x = static_cast<const T*>(p.x) + unit * p.pixels;
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < p.pixels; i += kRun) {
      const int64_t count = p.pixels - i < kRun ? p.pixels - i : kRun;
      const GroupNormCell run = measure_run(x + i, count);
      const double distance = run.mean - mean, all = static_cast<double>(i + count);
      mean += distance * static_cast<double>(count) / all;
      squares += run.squares + distance * distance * static_cast<double>(i) * static_cast<double>(count) / all;
    }
    if (p.add != nullptr) mean += p.add[unit];
    p.cells[unit] = {static_cast<float>(mean), static_cast<float>(squares)};
  }

  static GroupNormCell measure_run(const T* x, int64_t count) {
    const float first = to_float(x);  // distances from it: a far mean costs no precision
    const Reg start = V::set(first);
    Reg sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    visit(x, count, start,
          [&](int v, Reg value) __attribute__((always_inline)) { sums[v] = V::add(sums[v], V::sub(value, start)); });
    const float total = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
    const float mean = first + total / static_cast<float>(count);
    const Reg middle = V::set(mean);
    Reg squares[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    visit(x, count, middle, [&](int v, Reg value) __attribute__((always_inline)) {
      const Reg distance = V::sub(value, middle);
      squares[v] = V::fma(distance, distance, squares[v]);
    });
    return {mean, V::sum(V::add(V::add(squares[0], squares[1]), V::add(squares[2], squares[3])))};
  }

  // Calls f with each vector; elements that are missing from the last one are `fill`, the same in all places.
  template <class F>
  static void visit(const T* x, int64_t count, Reg fill, const F& f) {
    int64_t i = 0;
    for (; i + 4 * V::kWidth <= count; i += 4 * V::kWidth) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) f(v, V::load(x + i + v * V::kWidth));
    }
    for (; i + V::kWidth <= count; i += V::kWidth) f(0, V::load(x + i));
    if (i < count) {
      float values[V::kWidth];
      V::store(values, fill);
      for (int64_t j = i; j < count; ++j) values[j - i] = to_float(x + j);
      f(0, V::load(values));
    }
  }

  // --- the result
  // ------------------------------------------------------------------------------------------------------

  static void apply(const GroupNormParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t length = p.channels_last ? p.channels : p.pixels;
      const T* x = static_cast<const T*>(p.x) + row * length;
      T* y = static_cast<T*>(p.y) + row * length;
      if (p.channels_last) {
        const int64_t first = row / p.pixels * p.channels;
        const float *centre = p.centre + first, *factor = p.factor + first, *offset = p.offset;
        apply_row(x, y, length, p.silu, [&](int64_t c, int64_t count, Reg value) __attribute__((always_inline)) {
          if (count == V::kWidth) {
            return V::fma(V::sub(value, V::load(centre + c)), V::load(factor + c), V::load(offset + c));
          }
          return V::fma(V::sub(value, load_partial<V>(centre + c, count)), load_partial<V>(factor + c, count),
                        load_partial<V>(offset + c, count));
        });
      } else {
        const Reg centre = V::set(p.centre[row]), factor = V::set(p.factor[row]);
        const Reg offset = V::set(p.offset[row % p.channels]);
        apply_row(x, y, length, p.silu, [&](int64_t, int64_t, Reg value) __attribute__((always_inline)) {
          return V::fma(V::sub(value, centre), factor, offset);
        });
      }
    }
  }

  template <class F>
  static void apply_row(const T* x, T* y, int64_t length, bool silu, const F& affine) {
    const auto finish = [silu](Reg v) __attribute__((always_inline)) { return silu ? V::mul(v, sigmoid<V>(v)) : v; };
    int64_t i = 0;
    for (; i + V::kWidth <= length; i += V::kWidth) V::store(y + i, finish(affine(i, V::kWidth, V::load(x + i))));
    const int64_t rest = length - i;
    if (rest > 0) store_partial<V>(y + i, finish(affine(i, rest, load_partial<V>(x + i, rest))), rest);
  }
};

#define REFINERS_FOR_DTYPE(p, expression)     \
  if ((p).dtype == Dtype::kFloat32) {         \
    using T = float;                          \
    expression;                               \
  } else if ((p).dtype == Dtype::kBfloat16) { \
    using T = Bfloat16;                       \
    expression;                               \
  } else if ((p).dtype == Dtype::kFloat16) {  \
    using T = Float16;                        \
    expression;                               \
  }

template <class V>
constexpr GroupNormCpuKernels make_group_norm_kernels() {
  return {
      [](const GroupNormParams& p, int64_t begin, int64_t end, float* scratch) {
        REFINERS_FOR_DTYPE(p, (GroupNorm<V, T>::measure(p, begin, end, scratch)))
      },
      [](const GroupNormParams& p, int64_t begin, int64_t end) {
        REFINERS_FOR_DTYPE(p, (GroupNorm<V, T>::apply(p, begin, end)))
      },
  };
}

}  // namespace
}  // namespace refiners
