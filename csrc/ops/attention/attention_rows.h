// What attention does to a row of scores: biases, and the step of the online softmax.
//
// Source     Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3.
// Numerics   the weights are powers of two; of scores, one rounding is all that is lost. A row that sees no key has a
// sum
//            of 0.
#pragma once

#include "../../common/tile.h"
#include "../../common/vec_math.h"
#include "attention_cpu_kernel.h"

namespace refiners {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kInfinity = __builtin_inff();

// Of one row, so far.
struct AttentionState {
  float maximum = -kInfinity;
  float sum = 0;  // of the weights relative to the maximum
};

template <class V, class T>
struct AttentionBiasRow {
  // The biases of a row for the keys [begin, begin + count), in float32. Past the end there is rubbish, up to a vector.
  // `widened`: columns of a column bias, rounded up to whole vectors.
  static bool collect(const AttentionParams& p, int set, int64_t sample, int64_t head, int64_t query, int64_t begin,
                      int64_t count, float* row, float* widened) {
    bool any = false;
    for (const AttentionBias& bias : p.sets[set].biases) {
      if (bias.data == nullptr) continue;
      const int64_t at = offset(bias, sample, head, query) + begin * bias.key_stride;
      if (bias.is_bool) {
        const auto* from = static_cast<const uint8_t*>(bias.data) + at;
        write(row, count, any, [&](int64_t i) { return from[i * bias.key_stride] != 0 ? 0.0f : -kInfinity; });
      } else if (bias.key_stride == 0) {
        const float value = to_float(static_cast<const T*>(bias.data) + at);
        write(row, count, any, [&](int64_t) { return value; });
      } else {
        const T* from = static_cast<const T*>(bias.data) + at;
        if (any) {
          write(row, count, any, [&](int64_t i) { return to_float(from + i); });
        } else {
          convert<V>(from, row, count);
        }
      }
      any = true;
    }
    if (set == 0 && p.row_bias.data != nullptr) {
      add_grid(p, sample, head, query, begin, count, any, row, widened);
      any = true;
    }
    return any;
  }

 private:
  static int64_t offset(const AttentionBias& bias, int64_t sample, int64_t head, int64_t query) {
    return sample % bias.samples * bias.sample_stride + head * bias.head_stride + query * bias.query_stride;
  }

  template <class F>
  static void write(float* row, int64_t count, bool add, const F& value_of) {
    if (add) {
      for (int64_t i = 0; i < count; ++i) row[i] += value_of(i);
    } else {
      for (int64_t i = 0; i < count; ++i) row[i] = value_of(i);
    }
  }

  // Whole vectors, from the first row of the grid to the last: what one writes past its end, the next one overwrites.
  static void add_grid(const AttentionParams& p, int64_t sample, int64_t head, int64_t query, int64_t begin,
                       int64_t count, bool add, float* row, float* widened) {
    const T* row_bias = static_cast<const T*>(p.row_bias.data) + offset(p.row_bias, sample, head, query);
    const T* column_bias = static_cast<const T*>(p.column_bias.data) + offset(p.column_bias, sample, head, query);
    convert<V>(column_bias, widened, p.columns);
    float* sums = add ? widened + ceil_div(p.columns, V::kWidth) * V::kWidth + V::kWidth : row;
    for (int64_t r = begin / p.columns; r * p.columns < begin + count; ++r) {
      const typename V::Reg height = V::set(to_float(row_bias + r));
      const int64_t first = begin > r * p.columns ? begin - r * p.columns : 0;
      const int64_t last = min_of(p.columns, begin + count - r * p.columns);
      float* to = sums + r * p.columns - begin;
      for (int64_t c = first; c < last; c += V::kWidth) V::store(to + c, V::add(height, V::load(widened + c)));
    }
    if (add) write(row, count, true, [&](int64_t i) { return sums[i]; });
  }
};

// What a ragged end is limited to: nothing in its place, -∞ past it.
template <class V>
struct TailLimits {
  float values[2 * V::kWidth];

  constexpr TailLimits() : values() {
    for (int i = 0; i < V::kWidth; ++i) values[i] = kInfinity;
    for (int i = V::kWidth; i < 2 * V::kWidth; ++i) values[i] = -kInfinity;
  }
};

template <class V>
constexpr TailLimits<V> kTailLimits{};

// Turns scores into weights, e^(score·scale + bias - maximum) in [0, count), and zeros from there to `end`, which whole
// vectors may exceed. Gives what the results so far must be multiplied by. The maximum is in units of log 2 without a
// bias: there a product and a difference are one operation.
template <class V, bool kHasBias>
inline float step_softmax(float* scores, int64_t count, int64_t end, const float* bias, float scale,
                          AttentionState& state) {
  using Reg = typename V::Reg;
  const int64_t whole = count / V::kWidth * V::kWidth, rest = count - whole;
  const Reg limit = V::load(kTailLimits<V>.values + V::kWidth - rest);
  const Reg factor = V::set(kHasBias ? scale : scale * kLog2E), unit = V::set(kLog2E);
  const auto score = [&](int64_t i) __attribute__((always_inline)) {
    const Reg s = V::load(scores + i);
    return kHasBias ? V::fma(s, factor, V::load(bias + i)) : V::mul(s, factor);
  };
  const auto weight_of = [&](Reg difference) __attribute__((always_inline)) {
    return exp2_of_negative<V>(kHasBias ? V::mul(difference, unit) : difference);
  };
  Reg largest = V::set(-kInfinity), tail = largest;
  for (int64_t i = 0; i < whole; i += V::kWidth) {
    const Reg s = score(i);
    if constexpr (kHasBias) V::store(scores + i, s);
    largest = V::max(s, largest);
  }
  if (rest > 0) {
    tail = V::min(score(whole), limit);
    largest = V::max(tail, largest);
  }
  const float found = V::max_of(largest);
  const float maximum = found > state.maximum ? found : state.maximum;
  const float subtracted = maximum == -kInfinity ? 0.0f : maximum;  // -∞ less -∞ would be no number
  const Reg shift = V::set(-subtracted);
  Reg sum = V::zero();
  for (int64_t i = 0; i < whole; i += V::kWidth) {
    const Reg s = V::load(scores + i);
    const Reg weight = weight_of(kHasBias ? V::add(s, shift) : V::fma(s, factor, shift));
    V::store(scores + i, weight);
    sum = V::add(sum, weight);
  }
  int64_t i = whole;
  if (rest > 0) {
    const Reg weight = weight_of(V::add(tail, shift));
    V::store(scores + i, weight);
    sum = V::add(sum, weight);
    i += V::kWidth;
  }
  for (; i < end; i += V::kWidth) V::store(scores + i, V::zero());
  float before = 1.0f;
  if (maximum != state.maximum && state.maximum != -kInfinity) {
    float lanes[V::kWidth];
    V::store(lanes, weight_of(V::set(state.maximum - subtracted)));
    before = lanes[0];
  }
  state.sum = state.sum * before + V::sum(sum);  // a sum so far without a maximum is 0, or no number
  state.maximum = maximum;
  return before;
}

}  // namespace
}  // namespace refiners
