// One tile of an image while Gaussians are blended into it: pixels in lanes; on the CPU cell by cell, all in the first-level
// cache, in CUDA a thread each.
//
// Pixel 16 k + j of a tile is pixel (j % 4, j / 4) of cell k, which is cell (k % 4, k / 4): a vector of 16 lanes is a cell,
// one of 8 or 4 lanes half or a quarter of it; a warp is two cells.
#pragma once
#include "splat_image.h"

namespace polyfield {

constexpr int VECTORS = CELLS / LANES;  // of a cell

#if PF_CUDA
template <class T> PF_INLINE T magnitude(T x) { return abs(x); }
PF_INLINE float falloff(float log2_x) { return exp2f(log2_x); }
PF_INLINE double falloff(double log2_x) { return exp(log2_x * 0.69314718055994531); }
#else
// Pixel centres of a tile, relative to its corner.
template <class T> struct Centers {
  alignas(64) T x[PIXELS], y[PIXELS];
  Centers() {
    for (int i = 0; i < PIXELS; ++i) {
      const int k = i / CELLS, j = i % CELLS;
      x[i] = T(CELL * (k % CELL) + j % CELL) + T(0.5), y[i] = T(CELL * (k / CELL) + j / CELL) + T(0.5);
    }
  }
};
template <class T> const Centers<T>& centers() {
  static const Centers<T> c;
  return c;
}

PF_INLINE Lane<float> magnitude(Lane<float> x) { return as_float(as_int(x) & Lane<int32_t>(0x7fffffff)); }
PF_INLINE Lane<double> magnitude(Lane<double> x) { return abs(x); }

// exp for what lies below 0: relative error 3e-6, less than an image can show. float64: exact, for gradient checks.
PF_INLINE Lane<float> falloff(Lane<float> log2_x) {
  using F = Lane<float>;
  const F x = max(log2_x, F(-126.0f)), shifted = x + F(12582912.0f), f = x - (shifted - F(12582912.0f));
  F p(9.5701e-3f);
  p = p * f + F(5.591786e-2f);
  p = p * f + F(2.4024745e-1f);
  p = p * f + F(6.9312181e-1f);
  p = p * f + F(0.99999926f);
  return as_float(as_int(p) + (as_int(shifted) << 23));
}
PF_INLINE Lane<double> falloff(Lane<double> log2_x) { return exp(log2_x * Lane<double>(0.69314718055994531)); }
#endif

// The alpha that counts, 0 where it does not, and its derivative by the logarithm of `full`, what opacity and falloff make.
// SMOOTH: the cutoff of gradient checks, where alpha begins at 1/255 with slope zero: alpha' = (alpha - 1/255)^2 / alpha.
template <bool SMOOTH, class R> PF_INLINE R cut(R full, R& slope) {
  using T = scalar_t<R>;
  const auto counts = full >= R(T(MIN_ALPHA));
  R x = full, s = full;
  if constexpr (SMOOTH) {
    const R e(T(MIN_ALPHA) * T(MIN_ALPHA));
    x = full - R(T(2 * MIN_ALPHA)) + e / full, s = full - e / full;
  }
  slope = select(counts & (x < R(T(MAX_ALPHA))), s, R(T(0)));
  return select(counts, min(x, R(T(MAX_ALPHA))), R(T(0)));
}

// The weight of an alpha in a pixel, if any light gets there, and what light is left.
template <class R> PF_INLINE R absorb(R alpha, R& transmittance, Mask<scalar_t<R>>& open) {
  using T = scalar_t<R>;
  open = transmittance >= R(T(MIN_TRANSMITTANCE));
  const R weight = select(open, alpha * transmittance, R(T(0)));
  transmittance = transmittance - weight;
  return weight;
}

// A Gaussian, ready to be evaluated at a tile's pixels.
template <class T> struct Splat {
  T x, y, a, b, c, opacity;
  Splat() = default;
  PF_INLINE Splat(const T* row, const Window& w) : x(row[MEAN] - T(w.x0)), y(row[MEAN + 1] - T(w.y0)), opacity(row[OPACITY]) {
    constexpr T LOG2E = T(1.4426950408889634);
    a = T(-0.5) * LOG2E * row[CONIC], b = -LOG2E * row[CONIC + 1], c = T(-0.5) * LOG2E * row[CONIC + 2];
  }
  // alpha at distance dx, dy, 0 where it does not count, and its derivative by log opacity.
  template <bool SMOOTH> PF_INLINE Lane<T> alpha(Lane<T> dx, Lane<T> dy, Lane<T>& slope) const {
    using R = Lane<T>;
    return cut<SMOOTH>(R(opacity) * falloff((R(a) * dx + R(b) * dy) * dx + R(c) * dy * dy), slope);
  }
};

// Pixels at distance dx, dy take a Gaussian in, if any light gets there: its weights, and what light is left.
template <bool SMOOTH, class T>
PF_INLINE Lane<T> take(const Splat<T>& splat, Lane<T> dx, Lane<T> dy, Lane<T>& transmittance, Mask<T>& open, Lane<T>& alpha, Lane<T>& slope) {
  alpha = splat.template alpha<SMOOTH>(dx, dy, slope);
  return absorb(alpha, transmittance, open);
}

// What a Gaussian's gradient needs of a tile: each a name of its own, so that all stay in registers.
template <class T, int N> struct Moments {
  using R = Lane<T>;
  R v{T(0)}, x{T(0)}, y{T(0)}, xx{T(0)}, xy{T(0)}, yy{T(0)}, abs_x{T(0)}, abs_y{T(0)}, channels[N];
  PF_INLINE Moments() {
    for (int k = 0; k < N; ++k) channels[k] = R(T(0));
  }
  // Of pixels with an image's gradient; rest: what of it is left to come.
  template <bool SMOOTH>
  PF_INLINE Mask<T> add(const Splat<T>& splat, R a, R b, R c, R dx, R dy, const R* value, const R* grad, R& transmittance, R& rest) {
    R alpha, slope, seen(T(0));
    Mask<T> open;
    const R before = transmittance, weight = take<SMOOTH>(splat, dx, dy, transmittance, open, alpha, slope);
    for (int k = 0; k < N; ++k) seen += grad[k] * value[k], channels[k] += weight * grad[k];
    rest = rest - weight * seen;
    const R v_ = select(open, slope * (before * seen - rest / (R(T(1)) - alpha)), R(T(0)));
    const R vx = v_ * dx, vy = v_ * dy;
    v += v_, x += vx, y += vy, xx += vx * dx, xy += vx * dy, yy += vy * dy;
    abs_x += magnitude(a * vx + b * vy), abs_y += magnitude(b * vx + c * vy);
    return open;
  }
  PF_INLINE void list(R* m) const {
    const R first[CHANNEL] = {v, x, y, xx, xy, yy, abs_x, abs_y};
    for (int k = 0; k < ROW; ++k) m[k] = k < CHANNEL ? first[k] : k < CHANNEL + N ? channels[k - CHANNEL] : R(T(0));
  }
};

}  // namespace polyfield
