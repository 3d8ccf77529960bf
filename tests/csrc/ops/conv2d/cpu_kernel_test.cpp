// The CPU kernels of conv2d against the formula in float64, for every instruction set that this machine has, and
// for vectors of 16 in plain C++.
#include "ops/conv2d/conv2d_cpu_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "matrix.h"
#include "ops/conv2d/conv2d_config.h"
#include "ops/conv2d/conv2d_simd.h"
#include "wide_vector.h"

using namespace refiners;

namespace {

struct Shape {
  std::int64_t samples, in, height, width, out, groups, kernel, stride, padding, dilation;
};

// Squares that fill the image and not; more than a block of squares, channels and columns; nothing divides.
const std::vector<Shape> kWinogradCases = {
    {1, 16, 8, 8, 16, 1, 3, 1, 1, 1}, {2, 17, 7, 5, 19, 1, 3, 1, 1, 1},   {1, 65, 4, 9, 33, 1, 3, 1, 0, 1},
    {1, 3, 2, 2, 1, 1, 3, 1, 1, 1},   {3, 24, 22, 34, 40, 1, 3, 1, 2, 1},
};
const std::vector<Shape> kProductCases = {
    {1, 16, 8, 8, 16, 1, 3, 1, 1, 1},    {2, 17, 7, 5, 19, 1, 3, 2, 1, 1}, {1, 6, 9, 8, 9, 3, 3, 1, 2, 2},
    {2, 260, 10, 10, 70, 1, 1, 1, 0, 1}, {1, 8, 9, 9, 8, 8, 3, 1, 1, 1},   {1, 3, 10, 10, 5, 1, 5, 5, 0, 1},
};

std::vector<const Conv2dCpuKernels*> kernels() {
  static constexpr Conv2dCpuKernels wide = make_conv2d_kernels<Wide>();
  std::vector<const Conv2dCpuKernels*> found = {&wide};
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    const auto* table = conv2d_cpu_kernels(isa);
    if (table != nullptr && isa <= best_cpu_isa(cpu_features())) found.push_back(table);
  }
  return found;
}

std::int64_t side_of_result(const Shape& s, std::int64_t side) {
  return (side + 2 * s.padding - s.dilation * (s.kernel - 1) - 1) / s.stride + 1;
}

// All tensors in one row each: the channels lie next to each other, those of the weights too or the places do.
struct Problem {
  Problem(const Shape& s, Dtype type, bool weight_by_channel, bool has_extras)
      : shape(s),
        dtype(type),
        out_height(side_of_result(s, s.height)),
        out_width(side_of_result(s, s.width)),
        x(type, 1, s.samples * s.height * s.width * s.in, random),
        weight(type, 1, s.out * s.kernel * s.kernel * s.in / s.groups, random),
        bias(type, 1, s.out, random),
        add(type, 1, s.samples * s.out, random),
        residual(type, 1, size_of_y(), random),
        y(type, 1, size_of_y(), random) {
    params = {.dtype = type,
              .samples = s.samples,
              .in_channels = s.in,
              .height = s.height,
              .width = s.width,
              .out_channels = s.out,
              .out_height = out_height,
              .out_width = out_width,
              .groups = s.groups,
              .kernel = {s.kernel, s.kernel},
              .stride = {s.stride, s.stride},
              .padding = {s.padding, s.padding},
              .dilation = {s.dilation, s.dilation},
              .x = x.data(),
              .x_sample_stride = s.height * s.width * s.in,
              .x_row_stride = s.width * s.in,
              .x_pixel_stride = s.in,
              .weight = weight.data(),
              .weight_by_channel = weight_by_channel,
              .bias = has_extras ? bias.data() : nullptr,
              .add = has_extras ? add.data() : nullptr,
              .residual = has_extras ? residual.data() : nullptr,
              .silu = has_extras,
              .y = y.data()};
  }

  std::int64_t size_of_y() const { return shape.samples * out_height * out_width * shape.out; }

  // In blocks and strips of the given sizes.
  void run_winograd(const Conv2dCpuKernels& table, std::int64_t squares, std::int64_t columns) {
    const std::int64_t count = shape.samples * ((out_height + 1) / 2) * ((out_width + 1) / 2);
    std::vector<float> spectrum(static_cast<std::size_t>(table.spectrum_size(params)));
    std::vector<float> scratch(static_cast<std::size_t>(table.winograd_scratch_size()));
    for (std::int64_t first = 0; first < count; first += squares) {
      const Conv2dSquares block{first, std::min(squares, count - first)};
      for (std::int64_t c = 0; c < shape.in; c += kConv2dGrain) {
        table.transform(params, block, c, std::min(c + kConv2dGrain, shape.in), spectrum.data());
      }
      for (std::int64_t c = 0; c < shape.out; c += columns) {
        table.compute_winograd(params, block, spectrum.data(), c, std::min(columns, shape.out - c), scratch.data());
      }
    }
  }

  void run(const Conv2dCpuKernels& table, std::int64_t height, std::int64_t width) {
    std::vector<float> scratch(static_cast<std::size_t>(table.scratch_size(height, width)));
    const std::int64_t rows = shape.samples * out_height * out_width, columns = shape.out / shape.groups;
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      for (std::int64_t r = 0; r < rows; r += height) {
        for (std::int64_t c = 0; c < columns; c += width) {
          table.compute(params, {g, r, std::min(height, rows - r), c, std::min(width, columns - c)}, scratch.data());
        }
      }
    }
  }

  double formula(std::int64_t n, std::int64_t row, std::int64_t column, std::int64_t o) const {
    const std::int64_t depth = shape.in / shape.groups, taps = shape.kernel * shape.kernel;
    const std::int64_t first = o / (shape.out / shape.groups) * depth;
    double sum = 0;
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const std::int64_t i = row * shape.stride + tap / shape.kernel * shape.dilation - shape.padding;
      const std::int64_t j = column * shape.stride + tap % shape.kernel * shape.dilation - shape.padding;
      if (i < 0 || i >= shape.height || j < 0 || j >= shape.width) continue;
      for (std::int64_t c = 0; c < depth; ++c) {
        const std::int64_t place = params.weight_by_channel ? tap * depth + c : c * taps + tap;
        sum += x.at(0, ((n * shape.height + i) * shape.width + j) * shape.in + first + c) *
               weight.at(0, o * taps * depth + place);
      }
    }
    const std::int64_t index = index_of(n, row, column, o);
    if (params.bias != nullptr) sum += bias.at(0, o) + add.at(0, n * shape.out + o) + residual.at(0, index);
    return params.silu ? sum / (1 + std::exp(-sum)) : sum;
  }

  std::int64_t index_of(std::int64_t n, std::int64_t row, std::int64_t column, std::int64_t o) const {
    return ((n * out_height + row) * out_width + column) * shape.out + o;
  }

  template <class F>
  void for_each(const F& f) const {
    for (std::int64_t n = 0; n < shape.samples; ++n) {
      for (std::int64_t i = 0; i < out_height; ++i) {
        for (std::int64_t j = 0; j < out_width; ++j) {
          for (std::int64_t o = 0; o < shape.out; ++o) f(formula(n, i, j, o), y.at(0, index_of(n, i, j, o)));
        }
      }
    }
  }

  double error() const {
    double error = 0, norm = 0;
    for_each([&](double expected, double found) {
      error += std::pow(found - expected, 2);
      norm += expected * expected;
    });
    return std::sqrt(error / norm);
  }

  double tolerance() const { return dtype == Dtype::kFloat32 ? 1e-6 : one_rounding(size_of_y()); }

  bool equals(const Problem& other) const {
    for (std::int64_t i = 0; i < size_of_y(); ++i) {
      if (y.at(0, i) != other.y.at(0, i)) return false;
    }
    return true;
  }

  std::mt19937 random{1};
  Shape shape;
  Dtype dtype;
  std::int64_t out_height, out_width;
  Matrix x, weight, bias, add, residual, y;
  Conv2dParams params{};
};

constexpr std::int64_t kSquares = kConv2dCpuConfig.squares, kColumns = kConv2dCpuConfig.winograd_columns;
constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kBfloat16};

}  // namespace

TEST(squares_match_the_formula) {
  for (const auto* table : kernels()) {
    for (const Shape& shape : kWinogradCases) {
      for (const Dtype dtype : kDtypes) {
        for (const bool by_channel : {false, true}) {
          Problem problem(shape, dtype, by_channel, by_channel);
          problem.run_winograd(*table, kSquares, kColumns);
          CHECK_NEAR(problem.error(), 0, problem.tolerance());
        }
      }
    }
  }
}

TEST(products_match_the_formula) {
  for (const auto* table : kernels()) {
    for (const Shape& shape : kProductCases) {
      for (const Dtype dtype : kDtypes) {
        for (const bool has_extras : {false, true}) {
          Problem problem(shape, dtype, true, has_extras);
          problem.run(*table, 50, 64);
          CHECK_NEAR(problem.error(), 0, problem.tolerance());
        }
      }
    }
  }
}

TEST(the_result_does_not_depend_on_the_blocks) {
  for (const auto* table : kernels()) {
    Problem whole(kWinogradCases[4], Dtype::kFloat32, true, true), parts(whole);
    parts.params.x = parts.x.data(), parts.params.weight = parts.weight.data(), parts.params.y = parts.y.data();
    whole.run_winograd(*table, kSquares, kColumns);
    parts.run_winograd(*table, 5, 32);
    CHECK(whole.equals(parts));
    Problem tall(kProductCases[3], Dtype::kFloat32, true, true), tiles(tall);
    tiles.params.x = tiles.x.data(), tiles.params.weight = tiles.weight.data(), tiles.params.y = tiles.y.data();
    tall.run(*table, 200, 256);
    tiles.run(*table, 7, 64);
    CHECK(tall.equals(tiles));
  }
}

TEST(what_is_not_finite_stays_where_it_is_read) {
  for (const auto* table : kernels()) {
    for (const bool by_channel : {false, true}) {
      Problem problem({1, 16, 12, 12, 16, 1, 3, 1, 1, 1}, Dtype::kFloat32, by_channel, false);
      static_cast<float*>(problem.x.data())[(6 * 12 + 6) * 16 + 2] = std::numeric_limits<float>::quiet_NaN();
      problem.run_winograd(*table, kSquares, kColumns);
      problem.for_each([&](double expected, double found) {
        CHECK(std::isnan(expected) == std::isnan(found));
        if (!std::isnan(expected)) CHECK_NEAR(found, expected, 1e-4);
      });
    }
  }
}
