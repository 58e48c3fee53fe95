// A surfel seen through a pixel: where the ray meets the disc, what is left of its light there, and the way back.
//
// With A the inverse of the disc's axes in the image, linearised at its mean, w their slopes in depth relative to the mean's and
// q = A^T w, the ray through a pixel at distance d from the mean's image meets the plane, exactly, at
//
//   (u, v) = t A d standard deviations,   z = t depth,   t = 1 / (1 - q d):
//
// what the cross product of the pixel's two planes gives (Huang et al., "2D Gaussian Splatting", 2024, eq. 8 to 10), with the mean
// as origin, so that nothing cancels. Where the disc is smaller than a pixel or seen from its edge, a round Gaussian of sqrt(1/2)
// pixels takes its place (eq. 11), as deep as the mean.
#pragma once
#include "splat_tile.h"

namespace polyfield {

// Columns of a surfel's row beside those of splat_row.h: q in the conic's place, and A.
enum SurfelColumn { SLOPE = 2, INVERSE = 12 };

constexpr double FILTER = 2;  // 1 / variance of the pixel's own Gaussian, per pixel^2

// How depths are mapped for the distortion, and where surfels begin to be seen.
template <class T> struct Depthwise { T near, scale; };  // m = -scale / z, up to a constant that no distortion sees

template <class T> struct Surfel {
  T x, y, q[2], a[4], depth, opacity;
  Surfel() = default;
  PF_INLINE Surfel(const T* row, const Window& w) : x(row[MEAN] - T(w.x0)), y(row[MEAN + 1] - T(w.y0)), depth(row[DEPTH]), opacity(row[OPACITY]) {
    for (int k = 0; k < 2; ++k) q[k] = row[SLOPE + k];
    for (int k = 0; k < 4; ++k) a[k] = row[INVERSE + k];
  }
};

// Pixels at distance dx, dy from a surfel's mean. exact: the disc itself is seen; else the pixel's own Gaussian.
template <class T> struct Hit {
  using R = Lane<T>;
  R t, u, v, z, alpha, slope;
  Mask<T> exact;
  template <bool SMOOTH> static PF_INLINE Hit of(const Surfel<T>& s, Lane<T> dx, Lane<T> dy, T near) {
    constexpr T LOG2E = T(1.4426950408889634);
    Hit h;
    const R one(T(1)), closeness = one - R(s.q[0]) * dx - R(s.q[1]) * dy;  // depth / z
    const Mask<T> front = (closeness > R(T(0))) & (closeness * R(near) < R(s.depth));
    h.t = one / select(front, closeness, one);
    h.u = (R(s.a[0]) * dx + R(s.a[1]) * dy) * h.t, h.v = (R(s.a[2]) * dx + R(s.a[3]) * dy) * h.t;
    const R disc = h.u * h.u + h.v * h.v, pixel = R(T(FILTER)) * (dx * dx + dy * dy);
    h.exact = front & (disc <= pixel);
    h.t = select(h.exact, h.t, one);
    h.z = R(s.depth) * h.t;
    h.alpha = cut<SMOOTH>(R(s.opacity) * falloff(R(T(-0.5) * LOG2E) * select(h.exact, disc, pixel)), h.slope);
    return h;
  }
};

// What a pixel knows of the depths that were blended into it. The distortion sum_{i<j} w_i w_j (m_i - m_j)^2 is the light
// taken times `spread`, the weighted sum of squared distances from the mean m, which is kept up to date (Welford, 1962).
template <class R> struct Depths {
  using T = scalar_t<R>;
  R sum, median, taken, middle, spread;  // taken: not 1 - T, whose rounding errors are as large as the first weights
  PF_INLINE void add(R z, R mapped, R weight, R before, R after) {
    const R half(T(0.5)), delta = mapped - middle;
    sum += weight * z;
    median = select((before > half) & (after <= half), z, median);
    taken += weight;
    middle += delta * (weight / max(taken, R(T(1e-12))));
    spread += weight * delta * (mapped - middle);
  }
};

// The gradient of what was drawn of depths, at a pixel; of the distortion, times the light taken and times the spread.
template <class R> struct DepthGradients { R sum, median, taken, spread, middle; };

// What a surfel's gradient needs of a tile: the gradient to its row, but for v at OPACITY, d loss / d log alpha.
template <class T, bool DEEP> struct SurfelMoments {
  using R = Lane<T>;
  R x{T(0)}, y{T(0)}, qx{T(0)}, qy{T(0)}, v{T(0)}, abs_x{T(0)}, abs_y{T(0)}, c0{T(0)}, c1{T(0)}, c2{T(0)}, depth{T(0)}, ux{T(0)}, uy{T(0)}, vx{T(0)}, vy{T(0)};
  // Of pixels with an image's gradient; rest: what of it is left to come.
  template <bool SMOOTH>
  PF_INLINE Mask<T> add(const Surfel<T>& s, const Depthwise<T>& to, R dx, R dy, const R* value, const R* grad, const DepthGradients<R>& deep, R& transmittance, R& rest) {
    const R zero(T(0)), one(T(1)), before = transmittance;
    const Hit<T> h = Hit<T>::template of<SMOOTH>(s, dx, dy, to.near);
    Mask<T> open;
    const R weight = absorb(h.alpha, transmittance, open);
    R seen = grad[0] * value[0] + grad[1] * value[1] + grad[2] * value[2], gz = zero;
    c0 += weight * grad[0], c1 += weight * grad[1], c2 += weight * grad[2];
    if constexpr (DEEP) {
      const R inverse = one / h.z, away = -R(to.scale) * inverse - deep.middle, half(T(0.5));
      seen += deep.sum * h.z + deep.taken * away * away + deep.spread;
      gz = weight * (deep.sum + R(T(2)) * deep.taken * away * R(to.scale) * inverse * inverse);
      gz += select((before > half) & (transmittance <= half), deep.median, zero);
    }
    rest = rest - weight * seen;
    const R g = select(open, h.slope * (before * seen - rest / (one - h.alpha)), zero);
    v += g;
    const R gu = select(h.exact, -g * h.u * h.t, zero), gv = select(h.exact, -g * h.v * h.t, zero);
    R gc = g * (h.u * h.u + h.v * h.v) * h.t;  // to 1 / t
    if constexpr (DEEP) gc = gc - gz * h.z * h.t, depth += gz * h.t;
    gc = select(h.exact, gc, zero);
    const R outside = select(h.exact, zero, R(T(FILTER)) * g);
    const R gx = outside * dx - gu * R(s.a[0]) - gv * R(s.a[2]) + gc * R(s.q[0]), gy = outside * dy - gu * R(s.a[1]) - gv * R(s.a[3]) + gc * R(s.q[1]);
    x += gx, y += gy, abs_x += magnitude(gx), abs_y += magnitude(gy);
    ux += gu * dx, uy += gu * dy, vx += gv * dx, vy += gv * dy, qx = qx - gc * dx, qy = qy - gc * dy;
    return open;
  }
  PF_INLINE void list(R* m) const {
    const R all[ROW] = {x, y, qx, qy, R(T(0)), v, abs_x, abs_y, c0, c1, c2, depth, ux, uy, vx, vy};
    for (int k = 0; k < ROW; ++k) m[k] = all[k];
  }
};

}  // namespace polyfield
