// What all splats share: their place and axes before a camera, their colours seen from there, and the way back to
// (means, quats, log_scales, logit_opacities, sh) and to the camera's pose.
//
//   p = R mean + t,   M = R rotation(quat) diag(exp(log_scales)),   colour = max(sum_k sh_k Y_k(direction) + 1/2, 0).
//
// The trick: Gaussians in lanes; wide rows (sh, what is written) are transposed in registers.
#pragma once
#include "op.h"
#include "sh_polynomials.h"
#include "splat_lens.h"
#include "splat_row.h"

namespace polyfield {

constexpr int MAX_SH = 3 * MAX_BASES, POSE = 12, FACTORS = 6;

PF_INLINE int bases_of(int degree) { return degree < 0 ? 0 : (degree + 1) * (degree + 1); }

#if PF_CUDA
template <class T> PF_INLINE void fetch_ahead(const T*, int64_t, int64_t, int64_t) {}  // other warps work meanwhile

// f(k, the three numbers of base k) for the coefficients of the Gaussians in lanes; unrolled, so that f's bases stay in registers.
template <class T, class F> PF_INLINE void for_sh(const T* sh, int, int bases, int, F f) {
#pragma unroll
  for (int k = 0; k < MAX_BASES; ++k)
    if (k < bases) {
      const T x[3] = {sh[3 * k], sh[3 * k + 1], sh[3 * k + 2]};
      f(k, x);
    }
}

// p[N lane + k] += x[k] of those that are seen.
template <class T, int N> PF_INLINE void add_rows(T* p, const T* x, int, bool seen) {
  if (!seen) return;
#pragma unroll
  for (int k = 0; k < N; ++k) p[k] += x[k];
}

// Keeps direction and gradient of the colour, the factors of the sh's gradient.
template <class T> PF_INLINE void keep_factors(T* to, const T* d, const T* gc, bool seen, int) {
  if (!seen) return;
  for (int k = 0; k < 3; ++k) to[k] = d[k], to[3 + k] = gc[k];
}

// Adds basis_k grad_c to the rows of the sh's gradient.
template <class T> PF_INLINE void add_sh(T* to, int, int bases, const T* basis, const T* gc, bool seen, int) {
#pragma unroll
  for (int k = 0; k < MAX_BASES; ++k)
    if (k < bases && seen)
      for (int c = 0; c < 3; ++c) to[3 * k + c] += basis[k] * gc[c];
}
#else
// Asks for the rows of the Gaussians two vectors ahead: they are read by columns, which no processor foresees.
template <class T> PF_INLINE void fetch_ahead(const T* table, int64_t i, int64_t end, int64_t width) {
  constexpr int LINE = 64 / sizeof(T);
  const int64_t begin = (i + 2 * LANES) * width, last = (i + 3 * LANES < end ? i + 3 * LANES : end) * width;
  for (int64_t k = begin; k < last; k += LINE) __builtin_prefetch(table + k);
}

template <class T, class F> PF_INLINE void for_sh(const T* sh, int stored, int bases, int n, F f) {
  Lane<T> x[MAX_SH + LANES];
  rows_to_lanes(sh, 3 * stored, 3 * bases, n, x);
  for (int k = 0; k < bases; ++k) f(k, x + 3 * k);
}

template <class R, int N> PF_INLINE void add_rows(scalar_t<R>* p, const R* x, int n, Mask<scalar_t<R>> seen) {
  for (uint32_t left = bits(seen); left; left &= left - 1) {
    const int lane = lowest(left);
    for (int k = 0; k < N; ++k) p[N * lane + k] += x[k][lane];
  }
}

template <class R> PF_INLINE void keep_factors(scalar_t<R>* to, const R* d, const R* gc, Mask<scalar_t<R>> seen, int) {
  for (uint32_t left = bits(seen); left; left &= left - 1) {
    const int lane = lowest(left);
    for (int k = 0; k < 3; ++k) to[FACTORS * lane + k] = d[k][lane], to[FACTORS * lane + 3 + k] = gc[k][lane];
  }
}

template <class R> PF_INLINE void add_sh(scalar_t<R>* to, int stored, int bases, const R* basis, const R* gc, Mask<scalar_t<R>> seen, int n) {
  R x[MAX_SH + LANES];
  for (int k = 0; k < bases; ++k)
    for (int c = 0; c < 3; ++c) x[3 * k + c] = basis[k] * gc[c];
  const uint32_t chosen = bits(seen);
  const int width = 3 * bases;
  for (int k = 0; k < width; k += LANES) {
    alignas(64) scalar_t<R> block[LANES * LANES];
    lanes_to_rows(block, LANES, width - k < LANES ? width - k : LANES, LANES, x + k);
    for (uint32_t left = chosen; left; left &= left - 1) {
      const int lane = lowest(left);
      scalar_t<R>* at = to + int64_t(lane) * 3 * stored + k;
      store_n(at, load_n(at, width - k) + load(block + LANES * lane), width - k);
    }
  }
}

#endif

template <class T> struct View {
  T r[9], t[3], center[3], fx, fy, cx, cy, near, blur;
  Limits<T> limits;
  int lens, antialias, width, height;
  PF_INLINE View(const T* K, const T* pose, int lens_, int width_, int height_, T near_, T blur_, int antialias_)
      : fx(K[0]), fy(K[4]), cx(K[2]), cy(K[5]), near(near_), blur(blur_), lens(lens_), antialias(antialias_), width(width_), height(height_) {
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) r[3 * i + j] = pose[4 * i + j];
      t[i] = pose[4 * i + 3];
    }
    for (int j = 0; j < 3; ++j) center[j] = -(r[j] * t[0] + r[3 + j] * t[1] + r[6 + j] * t[2]);
    const T w = T(width), h = T(height), out = T(0.15);
    limits = {(-out * w - cx) / fx, (w + out * w - cx) / fx, (-out * h - cy) / fy, (h + out * h - cy) / fy};
  }
};

template <class T> struct Gaussians { const T *means, *quats, *log_scales, *logit_opacities, *sh; };

// Where Gaussians are and how they are turned, before the camera; `seen` is their mean's image.
template <class R> struct Placed {
  using T = scalar_t<R>;
  R p[3], unit[4], inverse_norm, scale[3], m[9], opacity;
  Seen<R> seen;
  Mask<T> visible;

  PF_INLINE Placed(const View<T>& view, const Gaussians<T>& g, int64_t i, int n) {
    R mean[3], q[4];
    for (int k = 0; k < 3; ++k) mean[k] = load_strided(g.means + 3 * i + k, 3, n), scale[k] = exp(load_strided(g.log_scales + 3 * i + k, 3, n));
    for (int k = 0; k < 4; ++k) q[k] = load_strided(g.quats + 4 * i + k, 4, n);
    for (int k = 0; k < 3; ++k) p[k] = R(view.r[3 * k]) * mean[0] + R(view.r[3 * k + 1]) * mean[1] + R(view.r[3 * k + 2]) * mean[2] + R(view.t[k]);
    const R one(T(1)), two(T(2));
    const R square = p[0] * p[0] + p[1] * p[1] + p[2] * p[2];
    Mask<T> front = p[2] > R(view.near);
    if (view.lens == FISHEYE) front = (square > R(view.near * view.near)) & (p[2] > R(T(-0.8)) * sqrt(square));
    visible = front & (square < R(T(1e18))) & first<T>(n);
    for (int k = 0; k < 3; ++k) p[k] = select(visible, p[k], R(T(k == 2)));
    seen = look(view.lens, view.limits, p[0], p[1], p[2]);

    const R norm2 = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
    const Mask<T> turned = norm2 > R(T(1e-30));
    inverse_norm = select(turned, one / sqrt(select(turned, norm2, one)), R(T(0)));
    for (int k = 0; k < 4; ++k) unit[k] = q[k] * inverse_norm;
    unit[0] = select(turned, unit[0], one);
    const R w = unit[0], x = unit[1], y = unit[2], z = unit[3];
    const R rotation[9] = {one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y),
                           two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x),
                           two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)};
    for (int r = 0; r < 3; ++r)
      for (int k = 0; k < 3; ++k)
        m[3 * r + k] = (R(view.r[3 * r]) * rotation[k] + R(view.r[3 * r + 1]) * rotation[3 + k] + R(view.r[3 * r + 2]) * rotation[6 + k]) * scale[k];
    const R logit = load_strided(g.logit_opacities + i, 1, n);
    opacity = sigmoid(min(max(logit, R(T(-80))), R(T(80))));
  }
};

// H = J M: the axes as the lens sees them, linearised at the mean, in pixels.
template <class R> PF_INLINE void image_axes(const View<scalar_t<R>>& view, const Placed<R>& s, R* h) {
  const R focal[2] = {R(view.fx), R(view.fy)};
  for (int r = 0; r < 2; ++r)
    for (int k = 0; k < 3; ++k)
      h[3 * r + k] = focal[r] * (s.seen.j[3 * r] * s.m[k] + s.seen.j[3 * r + 1] * s.m[3 + k] + s.seen.j[3 * r + 2] * s.m[6 + k]);
}

// 2 log(255 opacity), the squared distance in standard deviations at which alpha = 1/255; leaves out what is fainter everywhere.
template <class R> PF_INLINE R reach_of(R opacity, Mask<scalar_t<R>>& visible) {
  using T = scalar_t<R>;
  const R one(T(1)), reach = opacity * R(T(1 / MIN_ALPHA));
  visible = visible & (reach > one);
  return R(T(2)) * log(select(visible, reach, one));
}

// Unit direction from the camera to the mean, or along the axis, and 1 / distance.
template <class R> PF_INLINE void direction_of(const View<scalar_t<R>>& view, const scalar_t<R>* means, int n, R* d, R& inverse) {
  using T = scalar_t<R>;
  for (int k = 0; k < 3; ++k)
    d[k] = view.lens == ORTHOGRAPHIC ? R(view.r[6 + k]) : load_strided(means + k, 3, n) - R(view.center[k]);
  inverse = R(T(1)) / sqrt(max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], R(T(1e-24))));
  for (int k = 0; k < 3; ++k) d[k] *= inverse;
}

// Colours of the n Gaussians from i on, seen by the camera.
template <class R> PF_INLINE void colors_of(const View<scalar_t<R>>& view, const Gaussians<scalar_t<R>>& g, int64_t i, int n, int stored, int degree, R* color) {
  using T = scalar_t<R>;
  const int bases = bases_of(degree);
  for (int k = 0; k < 3; ++k) color[k] = R(T(bases ? 0.5 : 0));
  if (!bases) return;
  R d[3], distance, basis[MAX_BASES];
  direction_of(view, g.means + 3 * i, n, d, distance);
  sh_values(degree, d[0], d[1], d[2], basis);
  for_sh(g.sh + 3 * stored * i, stored, bases, n, [&](int k, const R* x) {
    for (int c = 0; c < 3; ++c) color[c] += basis[k] * x[c];
  });
  for (int c = 0; c < 3; ++c) color[c] = max(color[c], R(T(0)));
}

// How many tiles and bands of tile rows the outlines of the Gaussians in lanes touch at most.
struct Touched {
  int64_t visible = 0, tiles = 0, bands = 0;
  // Of rows that are `kept`; f(lane) for those that fall between pixel centres after all: they are cleared.
  template <class T, class F> PF_INLINE void add(T* rows, uint32_t kept, int width, int height, F f) {
    for (; kept; kept &= kept - 1) {
      const int lane = lowest(kept);
      const Box box = box_of(rows + ROW * lane, width, height);
      if (box.empty()) clear_row(rows + ROW * lane), f(lane);
      else visible += 1, tiles += box.tiles(), bands += box.bands();
    }
  }
  PF_INLINE void store(int64_t* count) {
    visible = group_sum(visible), tiles = group_sum(tiles), bands = group_sum(bands);
    if (lane_number() == 0) count[0] = visible, count[1] = tiles, count[2] = bands;
  }
};

// Whether outlines meet the image.
template <class R> PF_INLINE Mask<scalar_t<R>> meets_image(R x, R y, R ex, R ey, int width, int height) {
  using T = scalar_t<R>;
  const R edge(T(0)), w{T(width)}, h{T(height)};
  return (x + ex > edge) & (x - ex < w) & (y + ey > edge) & (y - ey < h);
}

// ---- backward ---------------------------------------------------------------------------------------------------
// What density control goes by: g is the gradient to the mean in the image, and the same of absolute values.
template <class R, class T> PF_INLINE void add_statistics(T* statistics, int64_t i, Mask<T> seen, const R* g, const R* absolute, R ex, R ey) {
  const R length = sqrt(g[0] * g[0] + g[1] * g[1]), sum = sqrt(absolute[0] * absolute[0] + absolute[1] * absolute[1]), extent = max(ex, ey);
  for (uint32_t left = bits(seen); left; left &= left - 1) {
    const int lane = lowest(left);
    T* s = statistics + 4 * (i + lane);
    s[0] += item(length, lane), s[1] += item(sum, lane), s[2] += T(1), s[3] = item(extent, lane) > s[3] ? item(extent, lane) : s[3];
  }
}

// Where gradients are added; 0 = not wanted.
template <class T> struct Gradients {
  T *means, *quats, *log_scales, *logit_opacities, *sh;
  bool factored;  // sh is (G, 6), what sh_adam.cu multiplies out, and is written to
};

// Gradients to colours (those drawn: `color`) -> to sh and, gd, to the direction they are seen from.
template <class R>
PF_INLINE void colors_backward(const View<scalar_t<R>>& view, const Gaussians<scalar_t<R>>& g, const Gradients<scalar_t<R>>& to, int64_t i, int n, int stored, int degree,
                               const R* color, const R* grad, Mask<scalar_t<R>> moved, R* gd) {
  using T = scalar_t<R>;
  const int bases = bases_of(degree);
  for (int k = 0; k < 3; ++k) gd[k] = R(T(0));
  if (!bases) return;
  R d[3], distance, basis[MAX_BASES], gbasis[MAX_BASES], gc[3];
  direction_of(view, g.means + 3 * i, n, d, distance);
  for (int c = 0; c < 3; ++c) gc[c] = select(color[c] > R(T(0)), grad[c], R(T(0)));  // at the clamp, no gradient
  sh_values(degree, d[0], d[1], d[2], basis);
  if (to.sh && to.factored) keep_factors(to.sh + FACTORS * i, d, gc, moved, n);
  else if (to.sh) add_sh(to.sh + 3 * stored * i, stored, bases, basis, gc, moved, n);
  if (degree > 0) {
    for_sh(g.sh + 3 * stored * i, stored, bases, n, [&](int k, const R* x) { gbasis[k] = gc[0] * x[0] + gc[1] * x[1] + gc[2] * x[2]; });
    sh_gradient(degree, d[0], d[1], d[2], gbasis, gd[0], gd[1], gd[2]);
    const R along = gd[0] * d[0] + gd[1] * d[1] + gd[2] * d[2];
    for (int k = 0; k < 3; ++k) gd[k] = (gd[k] - along * d[k]) * distance;
  }
}

// The gradient to H -> to M and J.
template <class R> PF_INLINE void image_axes_backward(const View<scalar_t<R>>& view, const Placed<R>& s, const R* gh, R* gm, R* gj) {
  R g[6];
  for (int k = 0; k < 3; ++k) g[k] = R(view.fx) * gh[k], g[3 + k] = R(view.fy) * gh[3 + k];
  for (int r = 0; r < 3; ++r)
    for (int k = 0; k < 3; ++k) gm[3 * r + k] = s.seen.j[r] * g[k] + s.seen.j[3 + r] * g[3 + k];
  for (int r = 0; r < 6; ++r) {
    const int e = r < 3 ? 0 : 3, c = r % 3;
    gj[r] = g[e] * s.m[3 * c] + g[e + 1] * s.m[3 * c + 1] + g[e + 2] * s.m[3 * c + 2];
  }
}

// Gradients to p, M and the direction of colours -> to means, log_scales and quats, and, summed over Gaussians, to the pose.
template <class R>
PF_INLINE void placed_backward(const View<scalar_t<R>>& view, const Gaussians<scalar_t<R>>& g, const Gradients<scalar_t<R>>& to, int64_t i, int n, const Placed<R>& s,
                               const R* gp, const R* gm, const R* gd, Mask<scalar_t<R>> moved, bool posed, R* to_pose) {
  using T = scalar_t<R>;
  const R two(T(2));
  const bool parallel = view.lens == ORTHOGRAPHIC;
  if (to.means) {
    R gmean[3];
    for (int k = 0; k < 3; ++k) gmean[k] = R(view.r[k]) * gp[0] + R(view.r[3 + k]) * gp[1] + R(view.r[6 + k]) * gp[2] + (parallel ? R(T(0)) : gd[k]);
    add_rows<R, 3>(to.means + 3 * i, gmean, n, moved);
  }
  if (to.log_scales) {
    R gs[3];
    for (int k = 0; k < 3; ++k) gs[k] = gm[k] * s.m[k] + gm[3 + k] * s.m[3 + k] + gm[6 + k] * s.m[6 + k];
    add_rows<R, 3>(to.log_scales + 3 * i, gs, n, moved);
  }
  if (to.quats) {
    R f[9];  // gradient to the rotation
    for (int r = 0; r < 3; ++r)
      for (int k = 0; k < 3; ++k)
        f[3 * r + k] = (R(view.r[r]) * gm[k] + R(view.r[3 + r]) * gm[3 + k] + R(view.r[6 + r]) * gm[6 + k]) * s.scale[k];
    const R w = s.unit[0], x = s.unit[1], y = s.unit[2], z = s.unit[3];
    R gq[4] = {two * (x * (f[7] - f[5]) + y * (f[2] - f[6]) + z * (f[3] - f[1])),
               two * (y * (f[1] + f[3]) + z * (f[2] + f[6]) + w * (f[7] - f[5]) - two * x * (f[4] + f[8])),
               two * (x * (f[1] + f[3]) + z * (f[5] + f[7]) + w * (f[2] - f[6]) - two * y * (f[0] + f[8])),
               two * (x * (f[2] + f[6]) + y * (f[5] + f[7]) + w * (f[3] - f[1]) - two * z * (f[0] + f[4]))};
    const R along = gq[0] * w + gq[1] * x + gq[2] * y + gq[3] * z;
    for (int k = 0; k < 4; ++k) gq[k] = (gq[k] - along * s.unit[k]) * s.inverse_norm;
    add_rows<R, 4>(to.quats + 4 * i, gq, n, moved);
  }
  if (!posed) return;  // by R: through p, M and the camera's centre -R^T t; by t
  R mean[3];
  for (int k = 0; k < 3; ++k) mean[k] = load_strided(g.means + 3 * i + k, 3, n);
  R world[9];  // rotation diag(scale) = R^T M
  for (int r = 0; r < 3; ++r)
    for (int k = 0; k < 3; ++k) world[3 * r + k] = R(view.r[r]) * s.m[k] + R(view.r[3 + r]) * s.m[3 + k] + R(view.r[6 + r]) * s.m[6 + k];
  for (int r = 0; r < 3; ++r) {
    for (int k = 0; k < 3; ++k) {
      R sum = gp[r] * mean[k] + gm[3 * r] * world[3 * k] + gm[3 * r + 1] * world[3 * k + 1] + gm[3 * r + 2] * world[3 * k + 2];
      if (parallel) sum += r == 2 ? gd[k] : R(T(0));
      else sum += R(view.t[r]) * gd[k];
      to_pose[4 * r + k] += select(moved, sum, R(T(0)));
    }
    R sum = gp[r];
    if (!parallel) sum += R(view.r[3 * r]) * gd[0] + R(view.r[3 * r + 1]) * gd[1] + R(view.r[3 * r + 2]) * gd[2];
    to_pose[4 * r + 3] += select(moved, sum, R(T(0)));
  }
}

// Adds up what lanes found of the pose's gradient.
template <class R> PF_INLINE void store_pose(double* grad_pose, const R* to_pose) {
  if (!grad_pose) return;
  for (int k = 0; k < POSE; ++k) {
    const scalar_t<R> total = sum(to_pose[k]);
    if (lane_number() == 0) grad_pose[k] = total;
  }
}

}  // namespace polyfield
