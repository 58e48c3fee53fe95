// Elementary functions on lanes: the same names for float (CUDA), Lane<float> (polynomials, about 1e-7 relative)
// and Lane<double> (the C library, lane by lane: only tests run it).
#pragma once
#include "lane.h"

namespace polyfield {

#if PF_CUDA

PF_INLINE float exp(float x) { return expf(x); }
PF_INLINE float exp2_lanes(float x) { return exp2f(x); }
PF_INLINE float log(float x) { return logf(x); }
PF_INLINE float sqrt(float x) { return sqrtf(x); }
PF_INLINE float floor(float x) { return floorf(x); }
PF_INLINE float ceil(float x) { return ceilf(x); }
PF_INLINE float abs(float x) { return fabsf(x); }
// min and max return b where a or b is NaN, as on the CPU.
PF_INLINE float min(float a, float b) { return a < b ? a : b; }
PF_INLINE float max(float a, float b) { return a > b ? a : b; }
PF_INLINE int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }
PF_INLINE int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }
PF_INLINE double exp(double x) { return ::exp(x); }
PF_INLINE double log(double x) { return ::log(x); }
PF_INLINE double sqrt(double x) { return ::sqrt(x); }
PF_INLINE double floor(double x) { return ::floor(x); }
PF_INLINE double ceil(double x) { return ::ceil(x); }
PF_INLINE double abs(double x) { return fabs(x); }
PF_INLINE double min(double a, double b) { return a < b ? a : b; }
PF_INLINE double max(double a, double b) { return a > b ? a : b; }

#else

// min and max return b where a or b is NaN, like the vector instructions.
template <class T> PF_INLINE Lane<T> min(Lane<T> a, Lane<T> b) { return select(a < b, a, b); }
template <class T> PF_INLINE Lane<T> max(Lane<T> a, Lane<T> b) { return select(a > b, a, b); }
template <class T> PF_INLINE Lane<T> abs(Lane<T> x) { return select(x < Lane<T>(T(0)), -x, x); }

#define PF_LANE_BY_LANE(name)                                           \
  template <class T> PF_INLINE Lane<T> name(Lane<T> x) {                \
    Lane<T> r;                                                          \
    for (int i = 0; i < LANES; ++i) r.v[i] = std::name(x.v[i]);         \
    return r;                                                           \
  }
PF_LANE_BY_LANE(exp) PF_LANE_BY_LANE(log) PF_LANE_BY_LANE(sqrt) PF_LANE_BY_LANE(floor) PF_LANE_BY_LANE(ceil)
#undef PF_LANE_BY_LANE

#if defined(__AVX512F__) && POLYFIELD_LANES == 16
template <> PF_INLINE Lane<float> floor(Lane<float> x) { return Lane<float>((Lane<float>::V)_mm512_roundscale_ps((__m512)x.v, 0x09)); }
template <> PF_INLINE Lane<float> ceil(Lane<float> x) { return Lane<float>((Lane<float>::V)_mm512_roundscale_ps((__m512)x.v, 0x0A)); }
template <> PF_INLINE Lane<float> sqrt(Lane<float> x) { return Lane<float>((Lane<float>::V)_mm512_sqrt_ps((__m512)x.v)); }
#elif defined(__AVX2__) && POLYFIELD_LANES == 8
template <> PF_INLINE Lane<float> floor(Lane<float> x) { return Lane<float>((Lane<float>::V)_mm256_floor_ps((__m256)x.v)); }
template <> PF_INLINE Lane<float> ceil(Lane<float> x) { return Lane<float>((Lane<float>::V)_mm256_ceil_ps((__m256)x.v)); }
template <> PF_INLINE Lane<float> sqrt(Lane<float> x) { return Lane<float>((Lane<float>::V)_mm256_sqrt_ps((__m256)x.v)); }
#else
// Valid for |x| < 2^31, which is all that kernels ask for.
template <> PF_INLINE Lane<float> floor(Lane<float> x) {
  const Lane<float> t{Lane<int32_t>(x)};
  return t - select(t > x, Lane<float>(1.0f), Lane<float>(0.0f));
}
template <> PF_INLINE Lane<float> ceil(Lane<float> x) { return -floor(-x); }
#endif

// 2^x = 2^i * p(x - i), i the nearest integer; degree-6 polynomial, relative error 2e-7. Clamped to [-126, 127.99].
PF_INLINE Lane<float> exp2_lanes(Lane<float> x) {
  using F = Lane<float>;
  x = min(max(x, F(-126.0f)), F(127.99f));
  F magic(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  F shifted = x + magic;
  F f = x - (shifted - magic);
  F p(1.535336188319500e-4f);
  p = p * f + F(1.339887440266574e-3f);
  p = p * f + F(9.618437357674640e-3f);
  p = p * f + F(5.550332471162809e-2f);
  p = p * f + F(2.402264791363012e-1f);
  p = p * f + F(6.931472028550421e-1f);
  p = p * f + F(1.0f);
  return as_float(as_int(p) + (as_int(shifted) << 23));
}
template <> PF_INLINE Lane<float> exp(Lane<float> x) { return exp2_lanes(x * Lane<float>(1.44269504088896341f)); }

// log x = e log 2 + log m, m in [sqrt(1/2), sqrt 2): the Cephes polynomial in m - 1. x > 0 and normal.
template <> PF_INLINE Lane<float> log(Lane<float> x) {
  using F = Lane<float>;
  using I = Lane<int32_t>;
  I bits_x = as_int(x) - I(0x3f3504f3);
  I e = bits_x >> 23;
  F m = as_float((bits_x & I(0x007fffff)) + I(0x3f3504f3)) - F(1.0f);
  F z = m * m;
  F p(7.0376836292e-2f);
  p = p * m + F(-1.1514610310e-1f);
  p = p * m + F(1.1676998740e-1f);
  p = p * m + F(-1.2420140846e-1f);
  p = p * m + F(1.4249322787e-1f);
  p = p * m + F(-1.6668057665e-1f);
  p = p * m + F(2.0000714765e-1f);
  p = p * m + F(-2.4999993993e-1f);
  p = p * m + F(3.3333331174e-1f);
  F y = p * m * z - F(0.5f) * z;
  return m + y + F(e) * F(0.69314718055994531f);
}

#endif

template <class R> PF_INLINE R sigmoid(R x) { return R(1) / (R(1) + exp(-x)); }

}  // namespace polyfield
