// A vector of 16 floats in plain C++, with the members of Avx512 in common/vec.h: it runs the kernels that are written
// for those vectors, all their indices and ragged ends, on a CPU that has none.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/vec.h"

namespace refiners {
namespace {

struct Wide {
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = 12;

  struct Reg {
    float values[kWidth];
  };

  template <class F>
  static Reg make(const F& f) {
    Reg v;
    for (int i = 0; i < kWidth; ++i) v.values[i] = f(i);
    return v;
  }

  static Reg zero() { return set(0.0f); }
  static Reg set(float value) {
    return make([&](int) { return value; });
  }
  static Reg broadcast(const float* p) { return set(*p); }
  static Reg add(Reg a, Reg b) {
    return make([&](int i) { return a.values[i] + b.values[i]; });
  }
  static Reg sub(Reg a, Reg b) {
    return make([&](int i) { return a.values[i] - b.values[i]; });
  }
  static Reg mul(Reg a, Reg b) {
    return make([&](int i) { return a.values[i] * b.values[i]; });
  }
  static Reg div(Reg a, Reg b) {
    return make([&](int i) { return a.values[i] / b.values[i]; });
  }
  static Reg fma(Reg a, Reg b, Reg c) {
    return make([&](int i) { return std::fma(a.values[i], b.values[i], c.values[i]); });
  }
  static Reg min(Reg a, Reg b) {
    return make([&](int i) { return a.values[i] < b.values[i] ? a.values[i] : b.values[i]; });
  }
  static Reg max(Reg a, Reg b) {
    return make([&](int i) { return a.values[i] > b.values[i] ? a.values[i] : b.values[i]; });
  }
  static Reg abs(Reg v) {
    return make([&](int i) { return std::fabs(v.values[i]); });
  }
  static Reg round(Reg v) {
    return make([&](int i) { return std::nearbyint(v.values[i]); });
  }
  static Reg choose_negative(Reg sign, Reg negative, Reg other) {
    return make([&](int i) { return std::signbit(sign.values[i]) ? negative.values[i] : other.values[i]; });
  }
  static Reg power_of_two(Reg n) {
    return make([&](int i) { return n.values[i] < -126 ? 0.0f : std::ldexp(1.0f, static_cast<int>(n.values[i])); });
  }
  static float sum(Reg v) {
    float total = 0;
    for (const float value : v.values) total += value;
    return total;
  }
  static float max_of(Reg v) { return *std::max_element(v.values, v.values + kWidth); }
  static void transpose(Reg (&v)[kWidth]) {
    for (int i = 0; i < kWidth; ++i) {
      for (int j = 0; j < i; ++j) std::swap(v[i].values[j], v[j].values[i]);
    }
  }

  template <class T>
  static Reg load(const T* p) {
    return make([&](int i) { return to_float(p + i); });
  }
  static void store(float* p, Reg v) { std::memcpy(p, v.values, sizeof v.values); }
  template <class T>
  static void store(T* p, Reg v) {  // rounds as Avx2 does, eight at a time
    for (int i = 0; i < kWidth; i += Avx2::kWidth) Avx2::store(p + i, Avx2::load(v.values + i));
  }
};

}  // namespace
}  // namespace refiners
