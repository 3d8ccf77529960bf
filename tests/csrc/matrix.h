// Matrices as kernels see them, with their values in float64 beside.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "common/dtype.h"

namespace refiners {

inline float from_bfloat16(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Rounds to nearest, ties to even.
inline std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// A matrix as a kernel sees it, its values also in float64. Each row has `gap` elements behind it that must stay.
class Matrix {
 public:
  static constexpr std::int64_t kGap = 3;

  Matrix(Dtype dtype, std::int64_t rows, std::int64_t columns, std::mt19937& random)
      : dtype_(dtype), columns_(columns), stride_(columns + kGap), values_(static_cast<std::size_t>(rows * stride_)) {
    std::normal_distribution<float> normal;
    narrow_.resize(values_.size());
    for (std::size_t i = 0; i < values_.size(); ++i) {
      values_[i] = normal(random);
      narrow_[i] = to_bfloat16(values_[i]);
      if (dtype == Dtype::kBfloat16) values_[i] = from_bfloat16(narrow_[i]);
    }
  }

  void* data() { return dtype_ == Dtype::kBfloat16 ? static_cast<void*>(narrow_.data()) : values_.data(); }
  std::int64_t stride() const { return stride_; }

  // What is stored now: kernels write into one of the two.
  double at(std::int64_t row, std::int64_t column) const {
    const auto i = static_cast<std::size_t>(row * stride_ + column);
    return dtype_ == Dtype::kBfloat16 ? from_bfloat16(narrow_[i]) : values_[i];
  }

 private:
  Dtype dtype_;
  std::int64_t columns_, stride_;
  std::vector<float> values_;
  std::vector<std::uint16_t> narrow_;
};

// What a result may be off that was rounded once to 8 bits: the norm of many errors is near 2^-8 / √6, while a few
// elements may all be off by 2^-8.
inline double one_rounding(std::int64_t elements) { return elements < 1000 ? 1.0 / 256 : 1.0 / 512; }

}  // namespace refiners
