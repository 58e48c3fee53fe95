// Lenses of splatting: where a point in camera space is seen, at focal length 1, the Jacobian of that, and the way back.
//
// The Jacobian is what EWA splatting linearises the projection by (Zwicker et al., 2002); a pinhole's is taken no farther
// out than 15 % beyond the image's border, where it would blow ellipses up without bound (Kerbl et al., 2023).
#pragma once
#include "lane_math.h"

namespace polyfield {

enum Lens { PINHOLE, ORTHOGRAPHIC, FISHEYE };

template <class T> struct Limits { T u0, u1, v0, v1; };

// u, v; their Jacobian j[0..2], j[3..5] by x, y, z; and the depth that Gaussians are sorted by.
template <class R> struct Seen { R u, v, j[6], depth; };

// The fisheye's s = theta / rho (u = s x, v = s y) and k = (d s / d rho) / rho, with the gradient of k by rho^2 and z; e = rho^2 / z^2.
template <class R> struct Fisheye {
  R s, k, k_rho2, k_z, m;
  PF_INLINE Fisheye(R x, R y, R z) {
    using S = scalar_t<R>;
    const R rho2 = x * x + y * y, r2 = rho2 + z * z;
    const auto near_axis = (rho2 < R(S(0.01)) * z * z) & (z > R(S(0)));
    const R zi = R(S(1)) / select(near_axis, z, R(S(1))), zi3 = zi * zi * zi, e = rho2 * zi * zi;
    const R safe = select(near_axis, R(S(1)), max(rho2, R(S(1e-30)))), rho = sqrt(safe);
    const R q = z / r2;
    m = R(S(-1)) / r2;
    s = select(near_axis, zi * (R(S(1)) - e * (R(S(1.0 / 3)) - e * (R(S(0.2)) - e * (R(S(1.0 / 7)) - e * R(S(1.0 / 9)))))), angle(rho, z) / rho);
    const R f = R(S(-2.0 / 3)) + e * (R(S(0.8)) - e * (R(S(6.0 / 7)) - e * (R(S(8.0 / 9)) - e * R(S(10.0 / 11)))));
    const R f_e = R(S(0.8)) - e * (R(S(12.0 / 7)) - e * (R(S(24.0 / 9)) - e * R(S(40.0 / 11))));
    k = select(near_axis, zi3 * f, (q - s) / safe);
    // q_rho2 = -z / r2^2, s_rho2 = k / 2, q_z = 1 / r2 - 2 z^2 / r2^2, s_z = m
    k_rho2 = select(near_axis, zi3 * zi * zi * f_e, (-z * m * m - R(S(0.5)) * k - k) / safe);
    k_z = select(near_axis, -zi * zi3 * (R(S(3)) * f + R(S(2)) * e * f_e), (R(S(-2)) * m - R(S(2)) * z * z * m * m) / safe);
  }
  static PF_INLINE R angle(R rho, R z) {
#if PF_CUDA
    return atan2(rho, z);
#else
    R r;
    for (int i = 0; i < LANES; ++i) r.v[i] = std::atan2(rho.v[i], z.v[i]);
    return r;
#endif
  }
};

template <class R> PF_INLINE Seen<R> look(int lens, const Limits<scalar_t<R>>& limits, R x, R y, R z) {
  using S = scalar_t<R>;
  const R zero(S(0)), one(S(1));
  if (lens == ORTHOGRAPHIC) return {x, y, {one, zero, zero, zero, one, zero}, z};
  if (lens == FISHEYE) {
    const Fisheye<R> f(x, y, z);
    const R mixed = x * y * f.k;
    return {f.s * x, f.s * y, {f.s + x * x * f.k, mixed, x * f.m, mixed, f.s + y * y * f.k, y * f.m}, sqrt(x * x + y * y + z * z)};
  }
  const R i = one / z, u = x * i, v = y * i;
  const R cu = min(max(u, R(limits.u0)), R(limits.u1)), cv = min(max(v, R(limits.v0)), R(limits.v1));
  return {u, v, {i, zero, -cu * i, zero, i, -cv * i}, z};
}

// Gradients to everything in Seen -> to x, y, z.
template <class R>
PF_INLINE void look_backward(int lens, const Limits<scalar_t<R>>& limits, R x, R y, R z, const Seen<R>& g, R& gx, R& gy, R& gz) {
  using S = scalar_t<R>;
  if (lens == ORTHOGRAPHIC) {
    gx = g.u, gy = g.v, gz = g.depth;
    return;
  }
  if (lens == FISHEYE) {
    const Fisheye<R> f(x, y, z);
    const R both = g.j[1] + g.j[3];
    const R gs = g.u * x + g.v * y + g.j[0] + g.j[4];
    const R gk = x * x * g.j[0] + y * y * g.j[4] + x * y * both;
    const R gm = x * g.j[2] + y * g.j[5];
    const R grho2 = R(S(0.5)) * f.k * gs + f.k_rho2 * gk + f.m * f.m * gm;  // m = -1 / r2
    const R d = g.depth / sqrt(x * x + y * y + z * z);
    gx = f.s * g.u + R(S(2)) * x * f.k * g.j[0] + y * f.k * both + f.m * g.j[2] + R(S(2)) * x * grho2 + d * x;
    gy = f.s * g.v + R(S(2)) * y * f.k * g.j[4] + x * f.k * both + f.m * g.j[5] + R(S(2)) * y * grho2 + d * y;
    gz = f.m * gs + f.k_z * gk + R(S(2)) * z * f.m * f.m * gm + d * z;
    return;
  }
  const R i = R(S(1)) / z, u = x * i, v = y * i;
  const R cu = min(max(u, R(limits.u0)), R(limits.u1)), cv = min(max(v, R(limits.v0)), R(limits.v1));
  const R gu = g.u - select(cu == u, i * g.j[2], R(S(0))), gv = g.v - select(cv == v, i * g.j[5], R(S(0)));
  gx = gu * i;
  gy = gv * i;
  gz = g.depth - i * (gu * u + gv * v + i * (g.j[0] + g.j[4] - cu * g.j[2] - cv * g.j[5]));
}

}  // namespace polyfield
