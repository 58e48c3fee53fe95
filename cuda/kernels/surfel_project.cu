// Surfels (means, quats, log_scales, logit_opacities, sh) -> rows of what a pinhole camera sees, and the way back (Huang et al.,
// "2D Gaussian Splatting", 2024). A surfel is a Gaussian on the disc of its first two axes; the third is its normal.
//
//   H = J (t_u, t_v), J the projection's Jacobian at the mean,   w = (z of t_u, z of t_v) / z of the mean,   A = H^-1,   q = A^T w
//
// are all that a pixel needs to meet the disc exactly (surfel_tile.h). The disc's edge at `reach` squared standard deviations, where
// alpha = 1/255, is seen as a conic with the mean in a focus and of eccentricity e, e^2 = reach |w|^2: an ellipse with centre
// mean - k H w and covariance k (H H^T + k H w (H w)^T), k = reach / (1 - e^2). Adding k / 2 takes in the pixel's own Gaussian.
// These outlines are rows like a Gaussian's, by which surfels are sorted into tiles. The trick: no division by det H, so that discs
// seen from their edge do no harm.
#include "splat_place.h"
#include "surfel_tile.h"

namespace polyfield {

constexpr double EDGE_ON = 1e-5;    // |det H| / |H|^2 below which only the pixel's own Gaussian is seen
constexpr double HUGE_INVERSE = 1e15;  // A then, so that it does not count
constexpr double ASTRIDE = 0.98;    // e^2 from which on an outline is taken to be the whole image

// All that forward computes and backward needs again.
template <class R> struct Disc : Placed<R> {
  using T = scalar_t<R>;
  using Placed<R>::m, Placed<R>::seen, Placed<R>::opacity, Placed<R>::visible;
  R h[6], w[2], a[4], q[2], reach;
  Mask<T> flat;  // not seen from the edge

  PF_INLINE Disc(const View<T>& view, const Gaussians<T>& g, int64_t i, int n) : Placed<R>(view, g, i, n) {
    image_axes(view, *this, h);
    const R one(T(1)), inverse_z = one / seen.depth;
    w[0] = m[6] * inverse_z, w[1] = m[7] * inverse_z;
    const R size = h[0] * h[0] + h[1] * h[1] + h[3] * h[3] + h[4] * h[4], det = h[0] * h[4] - h[1] * h[3];
    visible = visible & (size < R(T(1e18))) & (w[0] * w[0] + w[1] * w[1] < R(T(1e18)));
    flat = visible & (abs(det) > R(T(EDGE_ON)) * size) & (size > R(T(1e-12)));
    const R inverse = one / select(flat, det, one), huge{T(HUGE_INVERSE)}, zero(T(0));
    a[0] = select(flat, h[4] * inverse, huge), a[1] = select(flat, -h[1] * inverse, zero);
    a[2] = select(flat, -h[3] * inverse, zero), a[3] = select(flat, h[0] * inverse, huge);
    for (int k = 0; k < 2; ++k) q[k] = select(flat, a[k] * w[0] + a[2 + k] * w[1], zero);
    reach = reach_of(opacity, visible);
  }
  // The outline as a row, of a mean at x, y.
  PF_INLINE void outline(R x, R y, int width, int height, R* row) const {
    const R one(T(1)), zero(T(0)), e2 = reach * (w[0] * w[0] + w[1] * w[1]);
    const Mask<T> whole = e2 < R(T(ASTRIDE));
    const R k = select(whole, reach / (one - select(whole, e2, zero)), zero);
    const R cx = h[0] * w[0] + h[1] * w[1], cy = h[3] * w[0] + h[4] * w[1], filter(T(1 / FILTER));
    const R all = R(T(width + height)) * R(T(width + height));
    row[MEAN] = select(whole, x - k * cx, R(T(0.5) * T(width))), row[MEAN + 1] = select(whole, y - k * cy, R(T(0.5) * T(height)));
    const R xx = select(whole, k * (h[0] * h[0] + h[1] * h[1] + k * cx * cx + filter), all);
    const R yy = select(whole, k * (h[3] * h[3] + h[4] * h[4] + k * cy * cy + filter), all);
    const R xy = select(whole, k * (h[0] * h[3] + h[1] * h[4] + k * cx * cy), zero);
    const R det = xx * yy - xy * xy, inverse = one / select(det > zero, det, one);
    row[CONIC] = yy * inverse, row[CONIC + 1] = -xy * inverse, row[CONIC + 2] = xx * inverse;
    row[EXTENT] = sqrt(xx), row[EXTENT + 1] = sqrt(yy);
  }
};

template <class T> PF_INLINE View<T> unlimited(const T* K, const T* pose, int width, int height, T near) {
  View<T> view(K, pose, PINHOLE, width, height, near, T(0), 0);
  view.limits = {T(-1e30), T(1e30), T(-1e30), T(1e30)};  // nothing is linearised
  return view;
}

template <class T>
void surfel_project(const T* means, const T* quats, const T* log_scales, const T* logit_opacities, const T* sh, Threads<> gaussians, int stored, int degree,
                    const T* K, const T* pose, int width, int height, T near, T* rows, T* outlines, int64_t* counts) {
  using R = Lane<T>;
  const View<T> view = unlimited(K, pose, width, height, near);
  const Gaussians<T> g{means, quats, log_scales, logit_opacities, sh};
  const bool colored = bases_of(degree) > 0;
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    Touched touched;
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      if (colored) fetch_ahead(sh, i, end, 3 * stored);
      const Disc<R> s(view, g, i, n);
      const R zero(T(0)), x = R(view.fx) * s.seen.u + R(view.cx), y = R(view.fy) * s.seen.v + R(view.cy);
      R around[ROW];
      s.outline(x, y, width, height, around);
      const R area = around[CONIC] * around[CONIC + 2] - around[CONIC + 1] * around[CONIC + 1];
      const Mask<T> kept = s.visible & (area > zero) & (around[EXTENT] < R(T(1e9))) & (around[EXTENT + 1] < R(T(1e9))) &
                           meets_image(around[MEAN], around[MEAN + 1], around[EXTENT], around[EXTENT + 1], width, height);
      T *to = rows + ROW * i, *to_outline = outlines + ROW * i;
      if (!any(kept)) {
        for (int k = 0; k < n; ++k) clear_row(to + ROW * k), clear_row(to_outline + ROW * k);
        continue;
      }
      R row[ROW] = {x, y, s.q[0], s.q[1], zero, s.opacity, around[EXTENT], around[EXTENT + 1], zero, zero, zero, s.seen.depth, s.a[0], s.a[1], s.a[2], s.a[3]};
      colors_of(view, g, i, n, stored, degree, row + COLOR);
      around[OPACITY] = s.opacity, around[DEPTH] = s.seen.depth;
      for (int k = COLOR; k < ROW; ++k)
        if (k != DEPTH) around[k] = zero;
      for (int k = 0; k < ROW; ++k) row[k] = select(kept, row[k], zero), around[k] = select(kept, around[k], zero);
      lanes_to_rows(to, ROW, ROW, n, row);
      lanes_to_rows(to_outline, ROW, ROW, n, around);
      touched.add(to_outline, bits(kept), width, height, [=](int lane) { clear_row(to + ROW * lane); });
    }
    touched.store(counts + 3 * (begin / CHUNK));
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------
// Of rows; added to the grad_* that are wanted (not 0).
template <class T>
void surfel_project_backward(const T* means, const T* quats, const T* log_scales, const T* logit_opacities, const T* sh, Threads<> gaussians, int stored,
                             int degree, const T* K, const T* pose, int width, int height, T near, const T* rows, const T* grad_rows, T* grad_means,
                             T* grad_quats, T* grad_log_scales, T* grad_logit_opacities, T* grad_sh, int factored, double* grad_pose, T* statistics) {
  using R = Lane<T>;
  const View<T> view = unlimited(K, pose, width, height, near);
  const Gaussians<T> surfels{means, quats, log_scales, logit_opacities, sh};
  const Gradients<T> to{grad_means, grad_quats, grad_log_scales, grad_logit_opacities, grad_sh, factored != 0};
  const bool colored = bases_of(degree) > 0;
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    R to_pose[POSE];
    for (int k = 0; k < POSE; ++k) to_pose[k] = R(T(0));
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      const T* row = rows + ROW * i;
      fetch_ahead(rows, i, end, ROW);
      if (colored) fetch_ahead(sh, i, end, 3 * stored);
      if (colored && grad_sh && !factored) fetch_ahead(grad_sh, i, end, 3 * stored);
      const R ex = load_strided(row + EXTENT, ROW, n), ey = load_strided(row + EXTENT + 1, ROW, n), zero(T(0));
      const Mask<T> seen = ex > zero;
      if (!any(seen)) continue;
      const Disc<R> s(view, surfels, i, n);
      R g[ROW];
      rows_to_lanes(grad_rows + ROW * i, ROW, ROW, n, g);
      Mask<T> moved(false);  // hidden ones have no gradient: theirs are not touched
      for (int k = 0; k < ROW; ++k) g[k] = select(seen, g[k], zero), moved = moved | (g[k] != zero);
      if (statistics) add_statistics(statistics, i, seen, g + MEAN, g + EXTENT, ex, ey);
      if (!any(moved)) continue;
      R go = g[OPACITY] * (R(T(1)) - s.opacity) * s.opacity;
      if (grad_logit_opacities) add_rows<R, 1>(grad_logit_opacities + i, &go, n, moved);

      // q = A^T w; A = H^-1: -A^T G A^T; w = z of M / depth
      R ga[4], gw[2], gh[6], gm[9], gp[3], gd[3], color[3];
      for (int r = 0; r < 2; ++r) {
        for (int k = 0; k < 2; ++k) ga[2 * r + k] = select(s.flat, g[INVERSE + 2 * r + k] + s.w[r] * g[SLOPE + k], zero);
        gw[r] = select(s.flat, s.a[2 * r] * g[SLOPE] + s.a[2 * r + 1] * g[SLOPE + 1], zero);
      }
      const R b0 = s.a[0] * ga[0] + s.a[2] * ga[2], b1 = s.a[0] * ga[1] + s.a[2] * ga[3], b2 = s.a[1] * ga[0] + s.a[3] * ga[2], b3 = s.a[1] * ga[1] + s.a[3] * ga[3];
      gh[0] = -(b0 * s.a[0] + b1 * s.a[1]), gh[1] = -(b0 * s.a[2] + b1 * s.a[3]), gh[2] = zero;
      gh[3] = -(b2 * s.a[0] + b3 * s.a[1]), gh[4] = -(b2 * s.a[2] + b3 * s.a[3]), gh[5] = zero;
      Seen<R> back;
      image_axes_backward<R>(view, s, gh, gm, back.j);
      const R inverse_z = R(T(1)) / s.seen.depth;
      gm[6] += gw[0] * inverse_z, gm[7] += gw[1] * inverse_z;
      back.u = R(view.fx) * g[MEAN], back.v = R(view.fy) * g[MEAN + 1], back.depth = g[DEPTH] - (gw[0] * s.w[0] + gw[1] * s.w[1]) * inverse_z;
      look_backward(view.lens, view.limits, s.p[0], s.p[1], s.p[2], back, gp[0], gp[1], gp[2]);
      for (int c = 0; c < 3; ++c) color[c] = load_strided(row + COLOR + c, ROW, n);
      colors_backward(view, surfels, to, i, n, stored, degree, color, g + COLOR, moved, gd);
      placed_backward(view, surfels, to, i, n, s, gp, gm, gd, moved, grad_pose != nullptr, to_pose);
    }
    store_pose(grad_pose ? grad_pose + POSE * (begin / CHUNK) : nullptr, to_pose);
  });
}

POLYFIELD_OP(surfel_project_f32, surfel_project<float>)
POLYFIELD_OP(surfel_project_f64, surfel_project<double>)
POLYFIELD_OP(surfel_project_backward_f32, surfel_project_backward<float>)
POLYFIELD_OP(surfel_project_backward_f64, surfel_project_backward<double>)

}  // namespace polyfield
