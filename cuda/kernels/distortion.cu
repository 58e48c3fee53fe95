// Distortion of the weights along each ray (Barron et al., "Mip-NeRF 360", 2022, eq. 15), in the scene's units:
//
//   loss_r = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 dt_i,   m_i = (t_start_i + t_end_i) / 2
//
// With samples in order the double sum is 2 sum_i w_i (m_i W_i - M_i), W and M the sums of w and w m over the samples
// before i (Sun et al., "Improved Direct Voxel Grid Optimization", 2022): one pass; backward needs the sums behind i as well, which
// are the totals less the rest. The trick: lanes over the samples of a ray, prefix sums by doubling, and m measured from
// the ray's first sample, so that no large numbers cancel.
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"

namespace polyfield {

// What sample i adds to its ray's loss, and d loss / d w_i, from the sums W, M of all samples before i and those of the ray.
template <class R> PF_INLINE R distortion_term(R w, R m, R dt, R w_before, R m_before) {
  using S = scalar_t<R>;
  return w * (R(S(2)) * (m * w_before - m_before) + R(S(1.0 / 3)) * w * dt);
}
template <class R> PF_INLINE R distortion_slope(R w, R m, R dt, R w_before, R m_before, R w_all, R m_all) {
  using S = scalar_t<R>;
  const R w_behind = w_all - w_before - w, m_behind = m_all - m_before - w * m;
  return R(S(2)) * (m * (w_before - w_behind) - (m_before - m_behind)) + R(S(2.0 / 3)) * w * dt;
}

// The samples of a ray in groups of lanes: f(i, n, w, m, dt, sums of w and w m before each); returns both sums.
template <class T, class F> PF_INLINE void for_groups(const T* weights, const T* t_starts, const T* t_ends, int64_t n, T& w_sum, T& m_sum, F f) {
  using R = Lane<T>;
  w_sum = m_sum = T(0);
  if (n <= 0) return;
  const T origin = t_starts[0];
  for (int64_t i = 0; i < n; i += GROUP) {
    const int left = int(n - i);
    const R w = load_n(weights + i, left), t0 = load_n(t_starts + i, left), t1 = load_n(t_ends + i, left);
    const R m = select(group_first<T>(left), (t0 - R(origin) + (t1 - R(origin))) * R(T(0.5)), R(T(0)));
    const R w_to = prefix_sum(w), m_to = prefix_sum(w * m);
    f(i, left, w, m, t1 - t0, R(w_sum) + shift_up<1>(w_to, R(T(0))), R(m_sum) + shift_up<1>(m_to, R(T(0))));
    w_sum += back(w_to);
    m_sum += back(m_to);
  }
}

template <class T> void distortion(const T* weights, const T* t_starts, const T* t_ends, const int32_t* ray_offsets, T* losses, Warps<> rays) {
  using R = Lane<T>;
  for_each(rays, [=](int64_t r) {
    const int64_t at = ray_offsets[r];
    T w_sum, m_sum;
    R loss(T(0));
    for_groups(weights + at, t_starts + at, t_ends + at, ray_offsets[r + 1] - at, w_sum, m_sum,
               [&](int64_t, int, R w, R m, R dt, R w_before, R m_before) { loss += distortion_term(w, m, dt, w_before, m_before); });
    store_sum(losses + r, loss);
  });
}

template <class T>
void distortion_backward(const T* weights, const T* t_starts, const T* t_ends, const int32_t* ray_offsets, const T* grad_losses, T* grad_weights, Warps<> rays) {
  using R = Lane<T>;
  for_each(rays, [=](int64_t r) {
    const int64_t at = ray_offsets[r], n = ray_offsets[r + 1] - at;
    T w_all, m_all, w_sum, m_sum;
    for_groups(weights + at, t_starts + at, t_ends + at, n, w_all, m_all, [](int64_t, int, R, R, R, R, R) {});
    const R grad(grad_losses[r]);
    for_groups(weights + at, t_starts + at, t_ends + at, n, w_sum, m_sum, [&](int64_t i, int left, R w, R m, R dt, R w_before, R m_before) {
      store_n(grad_weights + at + i, grad * distortion_slope(w, m, dt, w_before, m_before, R(w_all), R(m_all)), left);
    });
  });
}

POLYFIELD_OP(distortion_f32, distortion<float>)
POLYFIELD_OP(distortion_f64, distortion<double>)
POLYFIELD_OP(distortion_backward_f32, distortion_backward<float>)
POLYFIELD_OP(distortion_backward_f64, distortion_backward<double>)

}  // namespace polyfield
