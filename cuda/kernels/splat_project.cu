// Gaussians (means, quats, log_scales, logit_opacities, sh) -> rows of what a camera sees (splat_row.h), and the way back.
//
//   p = R mean + t,   H = J R rotation(quat) diag(exp(log_scales)),   covariance = H H^T + blur 1,   conic = its inverse,
//   colour = max(sum_k sh_k Y_k(direction) + 1/2, 0),
//
// J the lens's Jacobian at p (EWA; Zwicker et al., 2002; Kerbl et al., 2023). The ellipse ends where alpha = 1/255: at
// d^T conic d = 2 log(255 opacity). The trick: Gaussians in lanes; wide rows (sh, what is written) are transposed in
// registers, and determinants come from a cross product, which does not cancel for thin ellipses.
#include "op.h"
#include "sh_polynomials.h"
#include "splat_lens.h"
#include "splat_row.h"

namespace polyfield {

constexpr int MAX_SH = 3 * MAX_BASES, POSE = 12, FACTORS = 6;

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

// All that forward computes and backward needs again.
template <class R> struct Shape {
  using T = scalar_t<R>;
  R p[3], unit[4], inverse_norm, scale[3], m[9], h[6], a, b, c, sharp_det, det, opacity, reach;
  Seen<R> seen;
  Mask<T> visible;

  PF_INLINE Shape(const View<T>& view, const Gaussians<T>& g, int64_t i, int n) {
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
    const R focal[2] = {R(view.fx), R(view.fy)};
    for (int r = 0; r < 2; ++r)
      for (int k = 0; k < 3; ++k)
        h[3 * r + k] = focal[r] * (seen.j[3 * r] * m[k] + seen.j[3 * r + 1] * m[3 + k] + seen.j[3 * r + 2] * m[6 + k]);
    const R aa = h[0] * h[0] + h[1] * h[1] + h[2] * h[2], cc = h[3] * h[3] + h[4] * h[4] + h[5] * h[5];
    b = h[0] * h[3] + h[1] * h[4] + h[2] * h[5];
    const R n0 = h[1] * h[5] - h[2] * h[4], n1 = h[2] * h[3] - h[0] * h[5], n2 = h[0] * h[4] - h[1] * h[3];
    sharp_det = n0 * n0 + n1 * n1 + n2 * n2;
    const R blur(view.blur);
    det = sharp_det + blur * (aa + cc) + blur * blur;
    a = aa + blur, c = cc + blur;
    visible = visible & (det > R(T(0))) & (det < R(T(1e36))) & (a < R(T(1e18))) & (c < R(T(1e18)));
    det = select(visible, det, one);
    const R logit = load_strided(g.logit_opacities + i, 1, n);
    opacity = sigmoid(min(max(logit, R(T(-80))), R(T(80))));
    if (view.antialias) opacity = opacity * sqrt(max(sharp_det / det, R(T(2.5e-5))));
    reach = opacity * R(T(1 / MIN_ALPHA));
    visible = visible & (reach > one);
    reach = two * log(select(visible, reach, one));
  }
};

// Unit direction from the camera to the mean, or along the axis, and 1 / distance.
template <class R> PF_INLINE void direction_of(const View<scalar_t<R>>& view, const scalar_t<R>* means, int n, R* d, R& inverse) {
  using T = scalar_t<R>;
  for (int k = 0; k < 3; ++k)
    d[k] = view.lens == ORTHOGRAPHIC ? R(view.r[6 + k]) : load_strided(means + k, 3, n) - R(view.center[k]);
  inverse = R(T(1)) / sqrt(max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], R(T(1e-24))));
  for (int k = 0; k < 3; ++k) d[k] *= inverse;
}

template <class T>
void splat_project(const T* means, const T* quats, const T* log_scales, const T* logit_opacities, const T* sh, Threads<> gaussians, int stored, int degree,
                   const T* K, const T* pose, int lens, int width, int height, T near, T blur, int antialias, T* rows, int64_t* counts) {
  using R = Lane<T>;
  const View<T> view(K, pose, lens, width, height, near, blur, antialias);
  const Gaussians<T> g{means, quats, log_scales, logit_opacities, sh};
  const int bases = degree < 0 ? 0 : (degree + 1) * (degree + 1);
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    int64_t visible = 0, tiles = 0, bands = 0;
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      if (bases) fetch_ahead(sh, i, end, 3 * stored);
      const Shape<R> s(view, g, i, n);
      R row[ROW];
      row[MEAN] = R(view.fx) * s.seen.u + R(view.cx), row[MEAN + 1] = R(view.fy) * s.seen.v + R(view.cy);
      row[EXTENT] = sqrt(s.reach * s.a), row[EXTENT + 1] = sqrt(s.reach * s.c);
      const R edge(T(0)), w{T(width)}, h{T(height)};
      const Mask<T> kept = s.visible & (row[MEAN] + row[EXTENT] > edge) & (row[MEAN] - row[EXTENT] < w) & (row[MEAN + 1] + row[EXTENT + 1] > edge) &
                           (row[MEAN + 1] - row[EXTENT + 1] < h);
      T* to = rows + ROW * i;
      if (!any(kept)) {
        for (int k = 0; k < n; ++k) clear_row(to + ROW * k);
        continue;
      }
      const R inverse = R(T(1)) / s.det;
      row[CONIC] = s.c * inverse, row[CONIC + 1] = -s.b * inverse, row[CONIC + 2] = s.a * inverse;
      row[OPACITY] = s.opacity;
      row[DEPTH] = s.seen.depth;
      for (int k = 0; k < 3; ++k) row[COLOR + k] = R(T(bases ? 0.5 : 0));
      if (bases) {
        R d[3], distance, basis[MAX_BASES];
        direction_of(view, means + 3 * i, n, d, distance);
        sh_values(degree, d[0], d[1], d[2], basis);
        for_sh(sh + 3 * stored * i, stored, bases, n, [&](int k, const R* x) {
          for (int c = 0; c < 3; ++c) row[COLOR + c] += basis[k] * x[c];
        });
        for (int c = 0; c < 3; ++c) row[COLOR + c] = max(row[COLOR + c], R(T(0)));
      }
      for (int k = 0; k < DEPTH + 1; ++k) row[k] = select(kept, row[k], R(T(0)));
      for (int k = DEPTH + 1; k < ROW; ++k) row[k] = R(T(0));
      lanes_to_rows(to, ROW, ROW, n, row);
      for (uint32_t left = bits(kept); left; left &= left - 1) {
        T* r = to + ROW * lowest(left);
        const Box box = box_of(r, width, height);
        if (box.empty()) clear_row(r);  // between pixel centres
        else visible += 1, tiles += box.tiles(), bands += box.bands();
      }
    }
    visible = group_sum(visible), tiles = group_sum(tiles), bands = group_sum(bands);
    int64_t* count = counts + 3 * (begin / CHUNK);
    if (lane_number() == 0) count[0] = visible, count[1] = tiles, count[2] = bands;
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------
// Of rows, or of what blending left in slots; added to the grad_* that are wanted (not 0). With `factored`, grad_sh is written
// to instead: (G, 6), what sh_adam.cu multiplies out.
template <class T>
void splat_project_backward(const T* means, const T* quats, const T* log_scales, const T* logit_opacities, const T* sh, Threads<> gaussians, int stored,
                            int degree, const T* K, const T* pose, int lens, int width, int height, T near, T blur, int antialias, const T* rows,
                            const T* grad_rows, const T* slots, const int32_t* slot_gaussian, const int64_t* slot_offsets, int bands, T* grad_means, T* grad_quats,
                            T* grad_log_scales, T* grad_logit_opacities, T* grad_sh, int factored, double* grad_pose, T* statistics) {
  using R = Lane<T>;
  const View<T> view(K, pose, lens, width, height, near, blur, antialias);
  const Gaussians<T> gaussian{means, quats, log_scales, logit_opacities, sh};
  const int bases = degree < 0 ? 0 : (degree + 1) * (degree + 1);
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    R to_pose[POSE];
    for (int k = 0; k < POSE; ++k) to_pose[k] = R(T(0));
    Slots<T> blended{slots, slot_gaussian, slot_offsets, bands};
    if (!grad_rows) blended.gather(begin, end);
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      const T* row = rows + ROW * i;
      fetch_ahead(rows, i, end, ROW);
      if (bases) fetch_ahead(sh, i, end, 3 * stored);
      if (bases && grad_sh && !factored) fetch_ahead(grad_sh, i, end, 3 * stored);
      const Mask<T> seen = load_strided(row + EXTENT, ROW, n) > R(T(0));
      if (!any(seen)) continue;
      const Shape<R> s(view, gaussian, i, n);
      const R two(T(2)), half(T(0.5)), inverse = R(T(1)) / s.det;
      const R qa = s.c * inverse, qb = -s.b * inverse, qc = s.a * inverse;
      R g[ROW];
      if (grad_rows) {
        rows_to_lanes(grad_rows + ROW * i, ROW, ROW, n, g);
      } else {
        R moments[ROW];
        blended.load(i, n, moments);
        row_gradient(qa, qb, qc, s.opacity, moments, g);
      }
      for (int k = 0; k <= DEPTH; ++k) g[k] = select(seen, g[k], R(T(0)));
      if (statistics) {
        const R length = sqrt(g[MEAN] * g[MEAN] + g[MEAN + 1] * g[MEAN + 1]), absolute = sqrt(g[EXTENT] * g[EXTENT] + g[EXTENT + 1] * g[EXTENT + 1]);
        for (uint32_t left = bits(seen); left; left &= left - 1) {
          const int lane = lowest(left);
          T* s = statistics + 4 * (i + lane);
          const T ex = row[ROW * lane + EXTENT], ey = row[ROW * lane + EXTENT + 1], extent = ex > ey ? ex : ey;
          s[0] += item(length, lane), s[1] += item(absolute, lane), s[2] += T(1), s[3] = extent > s[3] ? extent : s[3];
        }
      }
      Mask<T> moved(false);  // hidden ones have no gradient: theirs are not touched
      for (int k = 0; k <= DEPTH; ++k) moved = moved | (g[k] != R(T(0)));
      if (!any(moved)) continue;

      // conic -> covariance: -Q G Q; opacity -> logit and, anti-aliased, covariance
      const R gb = half * g[CONIC + 1];
      const R l0 = qa * g[CONIC] + qb * gb, l1 = qa * gb + qb * g[CONIC + 2], l2 = qb * g[CONIC] + qc * gb, l3 = qb * gb + qc * g[CONIC + 2];
      R ga = -(l0 * qa + l1 * qb), gab = -two * (l0 * qb + l1 * qc), gc = -(l2 * qb + l3 * qc);
      const R logit = load_strided(logit_opacities + i, 1, n), plain = sigmoid(min(max(logit, R(T(-80))), R(T(80))));
      R go = g[OPACITY] * (R(T(1)) - plain) * s.opacity;
      if (antialias) {
        const R ratio = s.sharp_det * inverse;
        const R gr = select(ratio > R(T(2.5e-5)), half * g[OPACITY] * s.opacity / max(s.sharp_det, R(T(1e-37))), R(T(0)));  // d loss / d sharp_det, det fixed
        ga += gr * ((s.c - R(blur)) - ratio * s.c);
        gc += gr * ((s.a - R(blur)) - ratio * s.a);
        gab += two * gr * s.b * (ratio - R(T(1)));
      }
      if (grad_logit_opacities) add_rows<R, 1>(grad_logit_opacities + i, &go, n, moved);

      // covariance -> H -> M = R rotation diag(scale), and the Jacobian
      Seen<R> back;
      R gh[6], gm[9];
      for (int k = 0; k < 3; ++k) {
        gh[k] = R(view.fx) * (two * ga * s.h[k] + gab * s.h[3 + k]);
        gh[3 + k] = R(view.fy) * (two * gc * s.h[3 + k] + gab * s.h[k]);
      }
      for (int r = 0; r < 3; ++r)
        for (int k = 0; k < 3; ++k) gm[3 * r + k] = s.seen.j[r] * gh[k] + s.seen.j[3 + r] * gh[3 + k];
      for (int r = 0; r < 6; ++r) {
        const int e = r < 3 ? 0 : 3, c = r % 3;
        back.j[r] = gh[e] * s.m[3 * c] + gh[e + 1] * s.m[3 * c + 1] + gh[e + 2] * s.m[3 * c + 2];
      }
      back.u = R(view.fx) * g[MEAN], back.v = R(view.fy) * g[MEAN + 1], back.depth = g[DEPTH];
      R gp[3], gd[3] = {R(T(0)), R(T(0)), R(T(0))};
      look_backward(view.lens, view.limits, s.p[0], s.p[1], s.p[2], back, gp[0], gp[1], gp[2]);

      if (bases) {
        R d[3], distance, basis[MAX_BASES], gbasis[MAX_BASES];
        direction_of(view, means + 3 * i, n, d, distance);
        R color[3];
        for (int c = 0; c < 3; ++c) {  // at the clamp, no gradient
          color[c] = load_strided(row + COLOR + c, ROW, n);
          color[c] = select(color[c] > R(T(0)), g[COLOR + c], R(T(0)));
        }
        sh_values(degree, d[0], d[1], d[2], basis);
        if (grad_sh && factored) keep_factors(grad_sh + FACTORS * i, d, color, moved, n);
        else if (grad_sh) add_sh(grad_sh + 3 * stored * i, stored, bases, basis, color, moved, n);
        if (degree > 0) {
          for_sh(sh + 3 * stored * i, stored, bases, n, [&](int k, const R* x) { gbasis[k] = color[0] * x[0] + color[1] * x[1] + color[2] * x[2]; });
          sh_gradient(degree, d[0], d[1], d[2], gbasis, gd[0], gd[1], gd[2]);
          const R along = gd[0] * d[0] + gd[1] * d[1] + gd[2] * d[2];
          for (int k = 0; k < 3; ++k) gd[k] = (gd[k] - along * d[k]) * distance;
        }
      }
      if (grad_means) {
        R gmean[3];
        for (int k = 0; k < 3; ++k)
          gmean[k] = R(view.r[k]) * gp[0] + R(view.r[3 + k]) * gp[1] + R(view.r[6 + k]) * gp[2] + (lens == ORTHOGRAPHIC ? R(T(0)) : gd[k]);
        add_rows<R, 3>(grad_means + 3 * i, gmean, n, moved);
      }
      if (grad_log_scales) {
        R gs[3];
        for (int k = 0; k < 3; ++k) gs[k] = gm[k] * s.m[k] + gm[3 + k] * s.m[3 + k] + gm[6 + k] * s.m[6 + k];
        add_rows<R, 3>(grad_log_scales + 3 * i, gs, n, moved);
      }
      if (grad_quats) {
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
        add_rows<R, 4>(grad_quats + 4 * i, gq, n, moved);
      }
      if (grad_pose) {  // by R: through p, M and the camera's centre -R^T t; by t
        R mean[3];
        for (int k = 0; k < 3; ++k) mean[k] = load_strided(means + 3 * i + k, 3, n);
        R world[9];  // rotation diag(scale) = R^T M
        for (int r = 0; r < 3; ++r)
          for (int k = 0; k < 3; ++k) world[3 * r + k] = R(view.r[r]) * s.m[k] + R(view.r[3 + r]) * s.m[3 + k] + R(view.r[6 + r]) * s.m[6 + k];
        for (int r = 0; r < 3; ++r) {
          for (int k = 0; k < 3; ++k) {
            R sum = gp[r] * mean[k] + gm[3 * r] * world[3 * k] + gm[3 * r + 1] * world[3 * k + 1] + gm[3 * r + 2] * world[3 * k + 2];
            if (lens == ORTHOGRAPHIC) sum += r == 2 ? gd[k] : R(T(0));
            else sum += R(view.t[r]) * gd[k];
            to_pose[4 * r + k] += select(moved, sum, R(T(0)));
          }
          R sum = gp[r];
          if (lens != ORTHOGRAPHIC) sum += R(view.r[3 * r]) * gd[0] + R(view.r[3 * r + 1]) * gd[1] + R(view.r[3 * r + 2]) * gd[2];
          to_pose[4 * r + 3] += select(moved, sum, R(T(0)));
        }
      }
    }
    if (grad_pose)
      for (int k = 0; k < POSE; ++k) {
        const T total = sum(to_pose[k]);
        if (lane_number() == 0) grad_pose[POSE * (begin / CHUNK) + k] = total;
      }
  });
}

POLYFIELD_OP(splat_project_f32, splat_project<float>)
POLYFIELD_OP(splat_project_f64, splat_project<double>)
POLYFIELD_OP(splat_project_backward_f32, splat_project_backward<float>)
POLYFIELD_OP(splat_project_backward_f64, splat_project_backward<double>)

}  // namespace polyfield
