// Functions of vectors of floats. What is not a number stays so, infinities and denormal results are right.
#pragma once

#include "vec.h"

namespace refiners {
namespace {

// e^x, to two units in the last place.
template <class V>
inline typename V::Reg exp(typename V::Reg x) {
  x = V::max(V::set(-105.0f), V::min(V::set(90.0f), x));  // e^x is 0 and infinite there
  const typename V::Reg n = V::round(V::mul(x, V::set(1.44269504f)));
  typename V::Reg r = V::fma(n, V::set(-0.693359375f), x);  // ln 2 in two parts
  r = V::fma(n, V::set(2.12194440e-4f), r);
  typename V::Reg p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(V::mul(p, r), r, V::add(r, V::set(1.0f)));
  const typename V::Reg half = V::round(V::mul(n, V::set(0.5f)));  // 2^n in two steps, since n may be beyond a float's
  return V::mul(V::mul(p, V::power_of_two(half)), V::power_of_two(V::sub(n, half)));
}

// 2^x for x ≤ 0, to two units in the last place, and 0 below -126.5: weights of a softmax, relative to the largest.
template <class V>
inline typename V::Reg exp2_of_negative(typename V::Reg x) {
  x = V::max(V::set(-127.0f), x);
  const typename V::Reg n = V::round(x), r = V::sub(x, n);
  typename V::Reg p = V::set(1.5353362e-4f);  // fitted to a relative error of 2e-9
  p = V::fma(p, r, V::set(1.3398875e-3f));
  p = V::fma(p, r, V::set(9.618437e-3f));
  p = V::fma(p, r, V::set(5.5503324e-2f));
  p = V::fma(p, r, V::set(2.4022648e-1f));
  p = V::fma(p, r, V::set(6.931472e-1f));
  p = V::fma(p, r, V::set(1.0f));
  return V::mul(p, V::power_of_two(n));
}

// 1 / (1 + e^-x).
template <class V>
inline typename V::Reg sigmoid(typename V::Reg x) {
  const typename V::Reg one = V::set(1.0f);
  return V::div(one, V::add(one, exp<V>(V::sub(V::zero(), x))));
}

// x · Φ(x), with the normal distribution function Φ: for z = |x|, Φ(-z) = e^(-z²/2) · R(1 / (1 + 0.3 z)) with a
// polynomial R fitted to a relative error of 4e-8 over [0, 14.5].
template <class V>
inline typename V::Reg gelu(typename V::Reg x) {
  const typename V::Reg one = V::set(1.0f), z = V::abs(x);
  const typename V::Reg t = V::div(one, V::fma(z, V::set(0.3f), one));
  typename V::Reg r = V::set(-0.00383670884f);
  r = V::fma(r, t, V::set(0.058276616f));
  r = V::fma(r, t, V::set(-0.213634953f));
  r = V::fma(r, t, V::set(0.284722477f));
  r = V::fma(r, t, V::set(-0.120333143f));
  r = V::fma(r, t, V::set(0.164511874f));
  r = V::fma(r, t, V::set(0.0876312926f));
  r = V::fma(r, t, V::set(0.123314284f));
  r = V::fma(r, t, V::set(0.119333878f));
  r = V::fma(r, t, V::set(1.43843808e-05f));
  const typename V::Reg tail = V::mul(r, exp<V>(V::mul(V::mul(z, z), V::set(-0.5f))));
  return V::mul(x, V::choose_negative(x, tail, V::sub(one, tail)));
}

// 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), by way of the sigmoid.
template <class V>
inline typename V::Reg gelu_tanh(typename V::Reg x) {
  const typename V::Reg cubic = V::fma(V::mul(x, x), V::set(0.044715f), V::set(1.0f));
  return V::mul(x, sigmoid<V>(V::mul(V::mul(x, cubic), V::set(1.5957691216f))));
}

}  // namespace
}  // namespace refiners
