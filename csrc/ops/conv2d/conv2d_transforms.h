// Winograd's transforms along one side of a square, for kernels of three elements.
//
// Computes   y = Aᵀ[(G·g) ⊙ (Bᵀ·d)]: kOut results of a kernel g of 3 from d, kIn = kOut + 2 elements, by kIn products
// Source     Lavin and Gray 2015, arXiv:1509.09308, section 4: F(2, 3) and F(4, 3).
#pragma once

#include "../../common/vec.h"

namespace refiners {
namespace {

template <class V>
struct WinogradOfTwo {
  using Reg = typename V::Reg;
  static constexpr int kOut = 2, kIn = 4;

  static void input(const Reg (&d)[4], Reg (&v)[4]) {
    v[0] = V::sub(d[0], d[2]);
    v[1] = V::add(d[1], d[2]);
    v[2] = V::sub(d[2], d[1]);
    v[3] = V::sub(d[1], d[3]);
  }

  static void kernel(const Reg (&g)[3], Reg (&u)[4]) {
    const Reg half = V::set(0.5f);
    const Reg outer = V::mul(half, V::add(g[0], g[2]));
    u[0] = g[0];
    u[1] = V::fma(half, g[1], outer);
    u[2] = V::fma(V::set(-0.5f), g[1], outer);
    u[3] = g[2];
  }

  static void output(const Reg (&m)[4], Reg (&y)[2]) {
    y[0] = V::add(m[0], V::add(m[1], m[2]));
    y[1] = V::sub(V::sub(m[1], m[2]), m[3]);
  }
};

template <class V>
struct WinogradOfFour {
  using Reg = typename V::Reg;
  static constexpr int kOut = 4, kIn = 6;

  static void input(const Reg (&d)[6], Reg (&v)[6]) {
    const Reg four = V::set(4.0f), minus_four = V::set(-4.0f), two = V::set(2.0f), minus_five = V::set(-5.0f);
    const Reg even = V::fma(minus_four, d[2], d[4]), odd = V::fma(minus_four, d[1], d[3]);
    const Reg even_twos = V::sub(d[4], d[2]), odd_twos = V::mul(two, V::sub(d[3], d[1]));
    v[0] = V::fma(four, d[0], V::fma(minus_five, d[2], d[4]));
    v[1] = V::add(even, odd);
    v[2] = V::sub(even, odd);
    v[3] = V::add(even_twos, odd_twos);
    v[4] = V::sub(even_twos, odd_twos);
    v[5] = V::fma(four, d[1], V::fma(minus_five, d[3], d[5]));
  }

  static void kernel(const Reg (&g)[3], Reg (&u)[6]) {
    const Reg sixth = V::set(-1.0f / 6.0f), twelfth = V::set(1.0f / 12.0f);
    const Reg even = V::mul(sixth, V::add(g[0], g[2])), odd = V::mul(sixth, g[1]);
    const Reg even_twos = V::fma(V::set(1.0f / 24.0f), g[0], V::mul(V::set(1.0f / 6.0f), g[2]));
    const Reg odd_twos = V::mul(twelfth, g[1]);
    u[0] = V::mul(V::set(0.25f), g[0]);
    u[1] = V::add(even, odd);
    u[2] = V::sub(even, odd);
    u[3] = V::add(even_twos, odd_twos);
    u[4] = V::sub(even_twos, odd_twos);
    u[5] = g[2];
  }

  static void output(const Reg (&m)[6], Reg (&y)[4]) {
    const Reg ones = V::add(m[1], m[2]), ones_odd = V::sub(m[1], m[2]);
    const Reg twos = V::add(m[3], m[4]), twos_odd = V::sub(m[3], m[4]);
    y[0] = V::add(m[0], V::add(ones, twos));
    y[1] = V::fma(V::set(2.0f), twos_odd, ones_odd);
    y[2] = V::fma(V::set(4.0f), twos, ones);
    y[3] = V::add(V::fma(V::set(8.0f), twos_odd, ones_odd), m[5]);
  }
};

}  // namespace
}  // namespace refiners
