// Adam (Kingma and Ba, ICLR 2015) in place: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr m' / (sqrt(v') + eps).
//
// SPARSE: numbers whose gradient is zero keep parameter and moments, as in instant-ngp's optimizer. A vector of zeros
// costs one test: parameter and moments are not even read. The gradient that was used is set to zero, so that nobody
// needs to clear the buffer. A rounded half copy of what changed is written on the way.
#include "lane_math.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {
namespace {

template <class T> struct AdamRates {
  T beta1, beta2, step_size, root_correction, eps, decay;  // decay: what weight decay leaves of the parameter
};

template <class R> PF_INLINE void adam_update(const AdamRates<scalar_t<R>>& rates, R g, R& p, R& m, R& v) {
  using S = scalar_t<R>;
  m = R(rates.beta1) * m + R(S(1) - rates.beta1) * g;
  v = R(rates.beta2) * v + R(S(1) - rates.beta2) * g * g;
  p = p * R(rates.decay) - R(rates.step_size) * m / (sqrt(v) * R(rates.root_correction) + R(rates.eps));
}

#if !PF_CUDA

// float -> half formats, to nearest even; NaN stays NaN.
typedef uint16_t HalfLanes __attribute__((vector_size(LANES * 2)));

PF_INLINE HalfLanes to_bfloat16(Lane<float> x) {
  using U = Lane<uint32_t>;
  const U raw((U::V)x.v);
  const U rounded = (raw + U(0x7fffu) + ((raw >> 16) & U(1u))) >> 16;
  const U nan = (raw >> 16) | U(0x40u);
  const U quiet = U((U::V)(x != x).v);
  return __builtin_convertvector(((rounded & ~quiet) | (nan & quiet)).v, HalfLanes);
}

PF_INLINE uint16_t to_float16_scalar(float x) {
  uint32_t raw;
  std::memcpy(&raw, &x, 4);
  const uint16_t sign = uint16_t(raw >> 16 & 0x8000);
  const uint32_t magnitude = raw & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and more
  if (magnitude < 0x38800000) {                       // subnormal: adding 0.5 rounds at 2^-24
    float small;
    std::memcpy(&small, &magnitude, 4);
    small += 0.5f;
    uint32_t shifted;
    std::memcpy(&shifted, &small, 4);
    return sign | uint16_t(shifted - 0x3f000000);
  }
  return sign | uint16_t((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

PF_INLINE HalfLanes to_float16(Lane<float> x) {
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
  return (HalfLanes)_mm512_cvtps_ph((__m512)x.v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && POLYFIELD_LANES == 8
  return (HalfLanes)_mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT);
#else
  HalfLanes r;
  for (int i = 0; i < LANES; ++i) r[i] = to_float16_scalar(x[i]);
  return r;
#endif
}

enum HalfFormat { NONE, BFLOAT16, FLOAT16 };

template <bool SPARSE, HalfFormat HALF, class T>
void adam(T* param, T* grad, T* exp_avg, T* exp_avg_sq, uint16_t* half, int64_t n, AdamRates<T> rates) {
  parallel_chunks(n, 16384, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) {
      const int count = int(end - i < LANES ? end - i : LANES);
      const Lane<T> g = load_first(grad + i, count);
      const Mask<T> touched = g != Lane<T>(T(0));
      if (SPARSE && !any(touched)) continue;
      const Lane<T> p0 = load_first(param + i, count), m0 = load_first(exp_avg + i, count), v0 = load_first(exp_avg_sq + i, count);
      Lane<T> p = p0, m = m0, v = v0;
      adam_update(rates, g, p, m, v);
      if (SPARSE) {
        p = select(touched, p, p0), m = select(touched, m, m0), v = select(touched, v, v0);
        store_first(grad + i, Lane<T>(T(0)), count);
      }
      store_first(param + i, p, count);
      store_first(exp_avg + i, m, count);
      store_first(exp_avg_sq + i, v, count);
      if constexpr (HALF != NONE) {
        const HalfLanes rounded = HALF == BFLOAT16 ? to_bfloat16(p) : to_float16(p);
        std::memcpy(half + i, &rounded, count * sizeof(uint16_t));
      }
    }
  });
}

template <class T>
void sparse_adam(T* param, T* grad, T* exp_avg, T* exp_avg_sq, uint16_t* half, int64_t n, double beta1, double beta2, double step_size,
                 double root_correction, double eps, double decay, int dense, int half_format) {
  const AdamRates<T> rates{T(beta1), T(beta2), T(step_size), T(root_correction), T(eps), T(decay)};
  if constexpr (std::is_same_v<T, float>) {
    if (half_format == BFLOAT16) return (dense ? adam<false, BFLOAT16, T> : adam<true, BFLOAT16, T>)(param, grad, exp_avg, exp_avg_sq, half, n, rates);
    if (half_format == FLOAT16) return (dense ? adam<false, FLOAT16, T> : adam<true, FLOAT16, T>)(param, grad, exp_avg, exp_avg_sq, half, n, rates);
  }
  (dense ? adam<false, NONE, T> : adam<true, NONE, T>)(param, grad, exp_avg, exp_avg_sq, half, n, rates);
}

POLYFIELD_OP(sparse_adam_f32, sparse_adam<float>)
POLYFIELD_OP(sparse_adam_f64, sparse_adam<double>)

#endif

}  // namespace
}  // namespace polyfield
