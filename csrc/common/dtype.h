// The element types that kernels take. Knows neither torch nor Python.
#pragma once

#include <cstdint>
#include <cstring>

namespace refiners {

enum class Dtype : int { kFloat32, kBfloat16, kFloat16, kOther };

constexpr const char* kDtypeNames[] = {"float32", "bfloat16", "float16", "other"};

inline Dtype dtype_named(const char* name) {
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(name, kDtypeNames[i]) == 0) return static_cast<Dtype>(i);
  }
  return Dtype::kOther;
}

// Storage of the 16-bit types on the CPU, so that they differ from integers and from each other.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace refiners
