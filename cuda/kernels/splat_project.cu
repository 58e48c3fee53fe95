// Gaussians (means, quats, log_scales, logit_opacities, sh) -> rows of what a camera sees (splat_row.h), and the way back.
//
//   p = R mean + t,   H = J R rotation(quat) diag(exp(log_scales)),   covariance = H H^T + blur 1,   conic = its inverse,
//
// J the lens's Jacobian at p (EWA; Zwicker et al., 2002; Kerbl et al., 2023). The ellipse ends where alpha = 1/255: at
// d^T conic d = 2 log(255 opacity). The trick: determinants come from a cross product, which does not cancel for thin ellipses.
#include "splat_place.h"

namespace polyfield {

// All that forward computes and backward needs again.
template <class R> struct Shape : Placed<R> {
  using T = scalar_t<R>;
  using Placed<R>::opacity, Placed<R>::visible;
  R h[6], a, b, c, sharp_det, det, reach;

  PF_INLINE Shape(const View<T>& view, const Gaussians<T>& g, int64_t i, int n) : Placed<R>(view, g, i, n) {
    image_axes(view, *this, h);
    const R aa = h[0] * h[0] + h[1] * h[1] + h[2] * h[2], cc = h[3] * h[3] + h[4] * h[4] + h[5] * h[5];
    b = h[0] * h[3] + h[1] * h[4] + h[2] * h[5];
    const R n0 = h[1] * h[5] - h[2] * h[4], n1 = h[2] * h[3] - h[0] * h[5], n2 = h[0] * h[4] - h[1] * h[3];
    sharp_det = n0 * n0 + n1 * n1 + n2 * n2;
    const R blur(view.blur);
    det = sharp_det + blur * (aa + cc) + blur * blur;
    a = aa + blur, c = cc + blur;
    visible = visible & (det > R(T(0))) & (det < R(T(1e36))) & (a < R(T(1e18))) & (c < R(T(1e18)));
    det = select(visible, det, R(T(1)));
    if (view.antialias) opacity = opacity * sqrt(max(sharp_det / det, R(T(2.5e-5))));
    reach = reach_of(opacity, visible);
  }
};

template <class T>
void splat_project(const T* means, const T* quats, const T* log_scales, const T* logit_opacities, const T* sh, Threads<> gaussians, int stored, int degree,
                   const T* K, const T* pose, int lens, int width, int height, T near, T blur, int antialias, T* rows, int64_t* counts) {
  using R = Lane<T>;
  const View<T> view(K, pose, lens, width, height, near, blur, antialias);
  const Gaussians<T> g{means, quats, log_scales, logit_opacities, sh};
  const int bases = bases_of(degree);
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    Touched touched;
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      if (bases) fetch_ahead(sh, i, end, 3 * stored);
      const Shape<R> s(view, g, i, n);
      R row[ROW];
      row[MEAN] = R(view.fx) * s.seen.u + R(view.cx), row[MEAN + 1] = R(view.fy) * s.seen.v + R(view.cy);
      row[EXTENT] = sqrt(s.reach * s.a), row[EXTENT + 1] = sqrt(s.reach * s.c);
      const Mask<T> kept = s.visible & meets_image(row[MEAN], row[MEAN + 1], row[EXTENT], row[EXTENT + 1], width, height);
      T* to = rows + ROW * i;
      if (!any(kept)) {
        for (int k = 0; k < n; ++k) clear_row(to + ROW * k);
        continue;
      }
      const R inverse = R(T(1)) / s.det;
      row[CONIC] = s.c * inverse, row[CONIC + 1] = -s.b * inverse, row[CONIC + 2] = s.a * inverse;
      row[OPACITY] = s.opacity;
      row[DEPTH] = s.seen.depth;
      colors_of(view, g, i, n, stored, degree, row + COLOR);
      for (int k = 0; k < DEPTH + 1; ++k) row[k] = select(kept, row[k], R(T(0)));
      for (int k = DEPTH + 1; k < ROW; ++k) row[k] = R(T(0));
      lanes_to_rows(to, ROW, ROW, n, row);
      touched.add(to, bits(kept), width, height, [](int) {});
    }
    touched.store(counts + 3 * (begin / CHUNK));
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------
// Of rows, or of what blending left in slots; added to the grad_* that are wanted (not 0).
template <class T>
void splat_project_backward(const T* means, const T* quats, const T* log_scales, const T* logit_opacities, const T* sh, Threads<> gaussians, int stored,
                            int degree, const T* K, const T* pose, int lens, int width, int height, T near, T blur, int antialias, const T* rows,
                            const T* grad_rows, const T* slots, const int32_t* slot_gaussian, const int64_t* slot_offsets, int bands, T* grad_means, T* grad_quats,
                            T* grad_log_scales, T* grad_logit_opacities, T* grad_sh, int factored, double* grad_pose, T* statistics) {
  using R = Lane<T>;
  const View<T> view(K, pose, lens, width, height, near, blur, antialias);
  const Gaussians<T> gaussian{means, quats, log_scales, logit_opacities, sh};
  const Gradients<T> to{grad_means, grad_quats, grad_log_scales, grad_logit_opacities, grad_sh, factored != 0};
  const int bases = bases_of(degree);
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
      if (statistics) add_statistics(statistics, i, seen, g + MEAN, g + EXTENT, load_strided(row + EXTENT, ROW, n), load_strided(row + EXTENT + 1, ROW, n));
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
        gh[k] = two * ga * s.h[k] + gab * s.h[3 + k];
        gh[3 + k] = two * gc * s.h[3 + k] + gab * s.h[k];
      }
      image_axes_backward<R>(view, s, gh, gm, back.j);
      back.u = R(view.fx) * g[MEAN], back.v = R(view.fy) * g[MEAN + 1], back.depth = g[DEPTH];
      R gp[3], gd[3], color[3];
      look_backward(view.lens, view.limits, s.p[0], s.p[1], s.p[2], back, gp[0], gp[1], gp[2]);
      for (int c = 0; c < 3; ++c) color[c] = load_strided(row + COLOR + c, ROW, n);
      colors_backward(view, gaussian, to, i, n, stored, degree, color, g + COLOR, moved, gd);
      placed_backward(view, gaussian, to, i, n, s, gp, gm, gd, moved, grad_pose != nullptr, to_pose);
    }
    store_pose(grad_pose ? grad_pose + POSE * (begin / CHUNK) : nullptr, to_pose);
  });
}

POLYFIELD_OP(splat_project_f32, splat_project<float>)
POLYFIELD_OP(splat_project_f64, splat_project<double>)
POLYFIELD_OP(splat_project_backward_f32, splat_project_backward<float>)
POLYFIELD_OP(splat_project_backward_f64, splat_project_backward<double>)

}  // namespace polyfield
