// Winograd's transforms along one side of a square, for kernels of three elements.
//
// Computes   y = Aᵀ[(G·g) ⊙ (Bᵀ·d)]: 2 results of a kernel g of 3 from 4 elements d, by 4 products
// Source     Lavin and Gray 2015, arXiv:1509.09308, section 4.1: F(2, 3).
// Numerics   each result is a sum of terms with those elements alone that the formula has. That is not so for larger
//            squares, F(4, 3): there others cancel, and a large one leaves its rounding error in its neighbours.
#pragma once

#include "../../common/vec.h"

namespace refiners {
namespace {

template <class V>
struct Winograd {
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

}  // namespace
}  // namespace refiners
