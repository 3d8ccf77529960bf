// The CPU kernels of attention, written once over the vectors of common/vec.h.
//
// Computes   y = softmax(scale·q·kᵀ + biases)·v, for each head, and + second scale · the same with a second set of keys
// Source     Vaswani et al. 2017, arXiv:1706.03762, equation 1; blocks: Dao et al. 2022, arXiv:2205.14135, algorithm 1.
// Layout     rows of all tensors are contiguous, with any stride between them; heads are parts of rows; any sizes.
// Mapping    a task is a block of queries of one head. Keys and values are widened to float32 and laid out in panels
//            once for all tasks of a head that one thread takes; scores of a block of keys stay in the cache.
// Numerics   products and sums in float32, y is rounded once. A row of y depends on its own query, bitwise.
#pragma once

#include "attention_config.h"
#include "attention_rows.h"

namespace refiners {
namespace {

constexpr int64_t kQueryBlock = kAttentionCpuConfig.query_block;
constexpr int64_t kKeyBlock = kAttentionCpuConfig.key_block;
constexpr int64_t kSlots = kAttentionCpuConfig.max_heads;
constexpr int64_t kMaxDepth = kAttentionCpuConfig.depth_block;
constexpr int64_t kScoreStride = kKeyBlock + 16;  // no power of two: rows lie in different sets of the cache

// Calls f(row, constant count) for even groups of at most kMax rows.
template <int kMax, class F>
inline void for_row_groups(int64_t rows, const F& f) {
  int64_t groups = ceil_div(rows, kMax);
  for (int64_t row = 0; row < rows; --groups) {
    const int64_t count = ceil_div(rows - row, groups);
    with_constant_rows<kMax>(count, [&]<int kCount>() { f.template operator()<kCount>(row); });
    row += count;
  }
}

// Matrix products of blocks in float32, the right side in panels.
template <class V>
struct AttentionProducts {
  static constexpr int64_t kColumns = kPanel<V>;
  static constexpr int kNarrowRows = 12;  // with one vector of columns: enough sums to hide the latency of additions

  static int64_t padded(int64_t columns) { return ceil_div(columns, V::kWidth) * V::kWidth; }

  // Calls store(row, column, products) for all tiles of left · panels.
  template <class Store>
  static void multiply_panels(const float* left, int64_t left_stride, int64_t rows, const float* panels,
                              int64_t panel_stride, int64_t depth, int64_t columns, const Store& store) {
    for (int64_t c = 0; c < columns; c += kColumns, panels += panel_stride) {
      if (columns - c > V::kWidth) {
        for_row_groups<V::kTileRows>(rows, [&]<int kCount>(int64_t r) {
          typename V::Reg products[kCount][2];
          multiply<V>(left + r * left_stride, left_stride, panels, depth, products);
          store(r, c, products);
        });
      } else {
        for_row_groups<kNarrowRows>(rows, [&]<int kCount>(int64_t r) {
          typename V::Reg products[kCount][1];
          multiply<V>(left + r * left_stride, left_stride, panels, depth, products);
          store(r, c, products);
        });
      }
    }
  }

  // scores = queries · keysᵀ. Many features are summed in parts: less is rounded off, and a panel stays in the cache.
  static void score(const float* queries, int64_t features, int64_t rows, const float* keys, int64_t count,
                    float* scores) {
    const int64_t parts = ceil_div(features, kMaxDepth);
    for (int64_t from = 0, i = 0; i < parts; ++i) {
      const int64_t depth = ceil_div(features - from, parts - i);
      score_part(queries + from, features, rows, keys + from * kColumns, depth, count, scores, i > 0);
      from += depth;
    }
  }

  static void score_part(const float* queries, int64_t features, int64_t rows, const float* keys, int64_t depth,
                         int64_t count, float* scores, bool add) {
    const auto store = [&]<int kCount, int kVectors>(int64_t r, int64_t c, typename V::Reg(&products)[kCount][kVectors])
                           __attribute__((always_inline)) {
#pragma GCC unroll 12
                             for (int m = 0; m < kCount; ++m) {
#pragma GCC unroll 2
                               for (int n = 0; n < kVectors; ++n) {
                                 float* to = scores + (r + m) * kScoreStride + c + n * V::kWidth;
                                 V::store(to, add ? V::add(V::load(to), products[m][n]) : products[m][n]);
                               }
                             }
                           };
    multiply_panels(queries, features, rows, keys, features * kColumns, depth, count, store);
  }

  // sums = before · sums + weights · values; just the product where it is the first.
  static void accumulate(const float* weights, int64_t rows, const float* values, int64_t panel_stride, int64_t count,
                         int64_t features, const float* before, bool first, float* sums) {
    const int64_t stride = padded(features);
    const auto store = [&]<int kCount, int kVectors>(int64_t r, int64_t c, typename V::Reg(&products)[kCount][kVectors])
                           __attribute__((always_inline)) {
#pragma GCC unroll 12
                             for (int m = 0; m < kCount; ++m) {
                               const typename V::Reg factor = V::broadcast(before + r + m);
#pragma GCC unroll 2
                               for (int n = 0; n < kVectors; ++n) {
                                 float* to = sums + (r + m) * stride + c + n * V::kWidth;
                                 V::store(to, first ? products[m][n] : V::fma(V::load(to), factor, products[m][n]));
                               }
                             }
                           };
    multiply_panels(weights, kScoreStride, rows, values, panel_stride, count, features, store);
  }
};

// The memory of one thread.
template <class V>
struct AttentionScratch {
  static constexpr int64_t kColumns = kPanel<V>;
  float *queries, *scores, *bias, *widened, *before, *sums[2], *panels[2];
  int64_t block_size[2];  // floats of a block of keys and values, laid out
  bool resident[2];       // whether all blocks stay
  int64_t slot_size[2];   // floats of all blocks that stay of one head
  int64_t size;

  // Without memory it tells the size only.
  AttentionScratch(const AttentionParams& p, float* memory) {
    size = 0;
    const auto take = [&](int64_t floats) {
      float* taken = memory == nullptr ? nullptr : memory + size;
      size += ceil_div(floats, 16) * 16;
      return taken;
    };
    const int64_t value_width = ceil_div(p.value_features, kColumns) * kColumns;
    queries = take(kQueryBlock * p.features);
    scores = take(kQueryBlock * kScoreStride);
    bias = take(kKeyBlock + 2 * V::kWidth);
    widened = take(ceil_div(p.columns, V::kWidth) * V::kWidth + kKeyBlock + 4 * V::kWidth);
    before = take(kQueryBlock);
    for (int set = 0; set < p.set_count; ++set) {
      const int64_t keys = min_of(kKeyBlock, ceil_div(p.sets[set].keys, kColumns) * kColumns);
      const int64_t blocks = ceil_div(p.sets[set].keys, kKeyBlock);
      sums[set] = take(kQueryBlock * value_width);
      block_size[set] = keys * (p.features + value_width);
      resident[set] = blocks * block_size[set] <= kAttentionCpuConfig.resident;
      slot_size[set] = (resident[set] ? blocks : 1) * block_size[set];
      panels[set] = take((p.takes_turns ? p.heads : 1) * slot_size[set]);
    }
  }
};

template <class V, class T>
class Attention {
 public:
  Attention(const AttentionParams& params, float* memory) : p(params), scratch(params, memory) {}

  // One task of those up to `end`.
  void compute(int64_t task, int64_t end) {
    const Place before = here;
    here = place_of(task);
    if (here.sample != before.sample || (!p.takes_turns && here.head != before.head)) forget();
    next = place_of(task + 1 < end ? task + 1 : task);
    rows = min_of(p.query_block, p.queries - here.first_query);
    for (int64_t r = 0; r < rows; ++r) {
      convert<V>(row_of(p.query, here, here.first_query + r, p.features), scratch.queries + r * p.features, p.features);
    }
    for (int set = 0; set < p.set_count; ++set) attend(set);
    for (int64_t r = 0; r < rows; ++r) finish_row(r);
  }

 private:
  using Products = AttentionProducts<V>;
  static constexpr int64_t kColumns = kPanel<V>;

  struct Place {
    int64_t sample, head, first_query;
  };

  Place place_of(int64_t task) const {
    const int64_t blocks = ceil_div(p.queries, p.query_block), of_sample = task % (blocks * p.heads);
    const int64_t head = p.takes_turns ? of_sample % p.heads : of_sample / blocks;
    const int64_t block = p.takes_turns ? of_sample / p.heads : of_sample % blocks;
    return {task / blocks / p.heads, head, block * p.query_block};
  }

  static const T* row_of(const AttentionRows& x, const Place& at, int64_t row, int64_t features) {
    return static_cast<const T*>(x.data) + at.sample * x.batch_stride + row * x.row_stride + at.head * features;
  }

  void attend(int set) {
    AttentionState* state = states[set];
    for (int64_t r = 0; r < rows; ++r) state[r] = {};
    const bool is_causal = set == 0 && p.is_causal;
    const int64_t keys = is_causal ? min_of(p.sets[set].keys, here.first_query + rows) : p.sets[set].keys;
    for (int64_t begin = 0; begin < keys; begin += kKeyBlock) {
      const int64_t in_block = min_of(kKeyBlock, p.sets[set].keys - begin), count = min_of(kKeyBlock, keys - begin);
      const float* key_panels = block(set, begin, in_block);
      const float* value_panels = key_panels + ceil_div(in_block, kColumns) * kColumns * p.features;
      Products::score(scratch.queries, p.features, rows, key_panels, count, scratch.scores);
      for (int64_t r = 0; r < rows; ++r) {
        if (set == 0 && begin == 0) prefetch(r);
        const int64_t seen = is_causal ? min_of(count, here.first_query + r + 1 - begin) : count;
        scratch.before[r] = step(set, r, begin, seen > 0 ? seen : 0, count, state[r]);
      }
      Products::accumulate(scratch.scores, rows, value_panels, in_block * kColumns, count, p.value_features,
                           scratch.before, begin == 0, scratch.sums[set]);
    }
  }

  // What this row's result is written to, and what the next task reads: parts of rows far from each other, which the
  // processor does not foresee.
  void prefetch(int64_t r) const {
    prefetch_row<1>(result_of(r), p.value_features);
    prefetch_row<0>(row_of(p.query, next, min_of(next.first_query + r, p.queries - 1), p.features), p.features);
    const bool is_packed = p.takes_turns ? next.first_query > 0 : next.head == here.head && next.sample == here.sample;
    if (is_packed || r >= p.sets[0].keys) return;
    prefetch_row<0>(row_of(p.sets[0].key, next, r, p.features), p.features);
    prefetch_row<0>(row_of(p.sets[0].value, next, r, p.value_features), p.value_features);
  }

  template <int kForWriting>
  static void prefetch_row(const T* row, int64_t features) {
    const char* bytes = reinterpret_cast<const char*>(row);
    const int64_t size = features * int64_t{sizeof(T)};
    for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(bytes + i, kForWriting);
  }

  T* result_of(int64_t r) const {
    return static_cast<T*>(p.y) + here.sample * p.y_batch_stride + (here.first_query + r) * p.y_row_stride +
           here.head * p.value_features;
  }

  float step(int set, int64_t r, int64_t begin, int64_t seen, int64_t count, AttentionState& state) {
    const bool has_bias = AttentionBiasRow<V, T>::collect(p, set, here.sample, here.head, here.first_query + r, begin,
                                                          seen, scratch.bias, scratch.widened);
    float* scores = scratch.scores + r * kScoreStride;
    return has_bias ? step_softmax<V, true>(scores, seen, count, scratch.bias, p.scale, state)
                    : step_softmax<V, false>(scores, seen, count, nullptr, p.scale, state);
  }

  void forget() {
    for (int set = 0; set < 2; ++set) {
      for (int64_t slot = 0; slot < kSlots; ++slot) packed[set][slot] = 0;
    }
  }

  // The keys and values from `begin` on, laid out: panels of keys, then panels of features of the values.
  const float* block(int set, int64_t begin, int64_t count) {
    const int64_t slot = p.takes_turns ? here.head : 0;
    float* panels = scratch.panels[set] + slot * scratch.slot_size[set];
    if (scratch.resident[set]) panels += begin / kKeyBlock * scratch.block_size[set];
    if (scratch.resident[set] && begin < packed[set][slot]) return panels;
    packed[set][slot] = begin + count;
    const AttentionSet& from = p.sets[set];
    float* to = panels;
    for (int64_t k = 0; k < count; k += kColumns, to += kColumns * p.features) {
      pack_panel<V>(row_of(from.key, here, begin + k, p.features), from.key.row_stride, p.features,
                    min_of(kColumns, count - k), to);
    }
    for (int64_t f = 0; f < p.value_features; f += kColumns, to += kColumns * count) {
      pack_transposed_panel<V>(row_of(from.value, here, begin, p.value_features) + f, from.value.row_stride, count,
                               min_of(kColumns, p.value_features - f), to);
    }
    return panels;
  }

  void finish_row(int64_t r) {
    const int64_t stride = Products::padded(p.value_features);
    typename V::Reg factors[2];
    for (int set = 0; set < p.set_count; ++set) {
      const float sum = states[set][r].sum,
                  scale = set == 0 ? 1.0f : p.second_scale[here.sample * p.second_scale_stride];
      factors[set] = V::set(sum == 0.0f ? 0.0f : scale / sum);
    }
    T* y = result_of(r);
    for (int64_t f = 0; f < p.value_features; f += V::kWidth) {
      typename V::Reg result = V::mul(V::load(scratch.sums[0] + r * stride + f), factors[0]);
      if (p.set_count > 1) result = V::fma(V::load(scratch.sums[1] + r * stride + f), factors[1], result);
      const int64_t rest = p.value_features - f;
      if (rest >= V::kWidth) {
        V::store(y + f, result);
      } else {
        store_partial<V>(y + f, result, rest);
      }
    }
  }

  const AttentionParams& p;
  AttentionScratch<V> scratch;
  AttentionState states[2][kQueryBlock];
  int64_t packed[2][kSlots] = {};  // keys that lie in the panels, of one head or of each
  Place here{-1, -1, 0}, next{};
  int64_t rows = 0;
};

template <class V, class T>
inline void compute_attention(const AttentionParams& p, int64_t begin, int64_t end, float* memory) {
  Attention<V, T> attention(p, memory);
  for (int64_t task = begin; task < end; ++task) attention.compute(task, end);
}

template <class V>
constexpr AttentionCpuKernels make_attention_kernels() {
  return {
      [](const AttentionParams& p) { return AttentionScratch<V>(p, nullptr).size; },
      [](const AttentionParams& p, int64_t begin, int64_t end, float* memory) {
        if (p.dtype == Dtype::kFloat32) compute_attention<V, float>(p, begin, end, memory);
        if (p.dtype == Dtype::kBfloat16) compute_attention<V, Bfloat16>(p, begin, end, memory);
        if (p.dtype == Dtype::kFloat16) compute_attention<V, Float16>(p, begin, end, memory);
      },
  };
}

}  // namespace
}  // namespace refiners
