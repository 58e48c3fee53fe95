// Adam (adam.h) on the colours of Gaussians, of which one render leaves a gradient of rank one per Gaussian:
//
//   grad sh[g, k, c] = Y_k(direction_g) grad_color_g[c]
//
// Of it, six numbers are kept (`factors`: direction and gradient of the colour), where the whole takes up to 75; it is
// multiplied out in registers here. As in sparse_adam.cu, a number whose gradient is zero keeps parameter and moments, a
// Gaussian without gradient is not looked at, and the factors that were used are set to zero.
#include "adam.h"
#include "lane_rows.h"
#include "op.h"
#include "sh_polynomials.h"

namespace polyfield {

namespace {

constexpr int FACTORS = 6, MAX_SH = 3 * MAX_BASES;

template <class T> struct Moments { T *param, *first, *second; };  // of one Gaussian's row

// Number i and what follows in its lanes, `count` of them
template <class T> PF_INLINE void step(const AdamRates<T>& rates, const Moments<T>& at, int i, int count, Lane<T> g) {
  using R = Lane<T>;
  const Mask<T> touched = g != R(T(0));
  if (!any(touched)) return;
  const R p0 = load_first(at.param + i, count), m0 = load_first(at.first + i, count), v0 = load_first(at.second + i, count);
  R p = p0, m = m0, v = v0;
  adam_update(rates, g, rates.columns ? load(rates.columns + i) : R(T(1)), p, m, v);
  store_first(at.param + i, select(touched, p, p0), count);
  store_first(at.first + i, select(touched, m, m0), count);
  store_first(at.second + i, select(touched, v, v0), count);
}

#if PF_CUDA
// Number i of those drawn, `width` per Gaussian: neighbouring threads have neighbouring numbers, each its own base.
template <class T>
PF_INLINE void step_number(const AdamRates<T>& rates, T* sh, const T* factors, T* exp_avg, T* exp_avg_sq, int64_t i, int stored, int degree, int width) {
  const int64_t g = i / width, row = 3 * int64_t(stored) * g;
  const int number = int(i - g * width);
  const T* of = factors + FACTORS * g;
  const T color = of[3 + number % 3];
  if (color == T(0)) return;
  T basis[MAX_BASES], mine = T(0);
  for (int k = 0; k < MAX_BASES; ++k) basis[k] = T(0);
  sh_values(degree, of[0], of[1], of[2], basis);
#pragma unroll
  for (int k = 0; k < MAX_BASES; ++k)
    mine += basis[k] * T(k == number / 3);
  step<T>(rates, {sh + row, exp_avg + row, exp_avg_sq + row}, number, 1, mine * color);
}
#else
// Gaussians are in lanes; their rows, one after the other, are not: the gradient is transposed on the way.
template <class T>
PF_INLINE void step_rows(const AdamRates<T>& rates, const Moments<T>& first, int stored, int bases, const Lane<T>* basis, const Lane<T>* color, Mask<T> touched) {
  Lane<T> x[MAX_SH + LANES];
  for (int k = 0; k < bases; ++k)
    for (int c = 0; c < 3; ++c) x[3 * k + c] = basis[k] * color[c];
  const int width = 3 * bases;
  alignas(64) T rows[LANES * (MAX_SH + LANES)];
  constexpr int STRIDE = MAX_SH / LANES * LANES + LANES;
  lanes_to_rows(rows, STRIDE, width, LANES, x);
  for (uint32_t left = bits(touched); left; left &= left - 1) {
    const int lane = lowest(left);
    const int64_t row = int64_t(lane) * 3 * stored;
    const Moments<T> at{first.param + row, first.first + row, first.second + row};
    for (int k = 0; k < width; k += LANES) {
      const int count = width - k < LANES ? width - k : LANES;
      step<T>(rates, at, k, count, load_first(rows + STRIDE * lane + k, count));
    }
  }
}
#endif

}  // namespace

// items: Gaussians; in CUDA, their numbers that were drawn, and whoever calls sets the factors to zero.
template <class T>
void sh_adam(T* sh, T* factors, T* exp_avg, T* exp_avg_sq, Threads<> items, int stored, int degree, T beta1, T beta2, T step_size,
             T root_correction, T eps, T decay, const T* columns, int width) {
  const AdamRates<T> rates{beta1, beta2, step_size, root_correction, eps, decay, columns, width};
  const int bases = (degree + 1) * (degree + 1);
#if PF_CUDA
  for_each(items, [=](int64_t i) { step_number<T>(rates, sh, factors, exp_avg, exp_avg_sq, i, stored, degree, 3 * bases); });
#else
  using R = Lane<T>;
  for_lanes(items, [=](int64_t i, int n) {
    R color[3], d[3], basis[MAX_BASES];
    for (int c = 0; c < 3; ++c) color[c] = load_strided(factors + FACTORS * i + 3 + c, FACTORS, n);
    const Mask<T> touched = (color[0] != R(T(0))) | (color[1] != R(T(0))) | (color[2] != R(T(0)));
    if (!any(touched)) return;
    for (int c = 0; c < 3; ++c) d[c] = load_strided(factors + FACTORS * i + c, FACTORS, n);
    sh_values(degree, d[0], d[1], d[2], basis);
    const int64_t row = 3 * int64_t(stored) * i;
    step_rows<T>(rates, {sh + row, exp_avg + row, exp_avg_sq + row}, stored, bases, basis, color, touched);
    for (int c = 0; c < 3; ++c) store_strided(factors + FACTORS * i + 3 + c, FACTORS, R(T(0)), n);
  });
#endif
}

POLYFIELD_OP(sh_adam_f32, sh_adam<float>)
POLYFIELD_OP(sh_adam_f64, sh_adam<double>)

}  // namespace polyfield
