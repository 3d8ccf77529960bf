// Memory for one call of an operator on the CPU: not initialised, and without a way through torch's dispatcher.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace refiners {

constexpr std::align_val_t kCacheLine{64};

struct FreeScratch {
  void operator()(float* p) const { ::operator delete(p, kCacheLine); }
};

using Scratch = std::unique_ptr<float[], FreeScratch>;

inline Scratch make_scratch(int64_t floats) {
  return Scratch(static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float), kCacheLine)));
}

}  // namespace refiners
