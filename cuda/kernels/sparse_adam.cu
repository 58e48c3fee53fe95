// Adam (adam.h) in place, on tensors of one shape.
//
// SPARSE: numbers whose gradient is zero keep parameter and moments, as in instant-ngp's optimizer. A vector of zeros
// costs one test: parameter and moments are not even read. The gradient that was used is set to zero, so that nobody
// needs to clear the buffer. A rounded half copy of what changed is written on the way.
#include "adam.h"
#include "op.h"

namespace polyfield {

// ---- float -> half formats, to nearest even; NaN stays NaN ------------------------------------------------------
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

#if PF_CUDA
using HalfLanes = uint16_t;
PF_INLINE HalfLanes narrow(uint32_t x) { return HalfLanes(x); }
PF_INLINE HalfLanes to_float16(float x) { return to_float16_scalar(x); }
#else
typedef uint16_t HalfLanes __attribute__((vector_size(LANES * 2)));
PF_INLINE HalfLanes narrow(Lane<uint32_t> x) { return __builtin_convertvector(x.v, HalfLanes); }
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
#endif

PF_INLINE HalfLanes to_bfloat16(Lane<float> x) {
  using U = Lane<uint32_t>;
  const U raw = as_uint(x);
  const U rounded = (raw + U(0x7fffu) + ((raw >> 16) & U(1u))) >> 16;
  return narrow(select(Mask<uint32_t>(x != x), (raw >> 16) | U(0x40u), rounded));
}

// ---- the step ---------------------------------------------------------------------------------------------------
enum HalfFormat { NONE, BFLOAT16, FLOAT16 };

template <bool SPARSE, HalfFormat HALF, class T>
void adam(T* param, T* grad, T* exp_avg, T* exp_avg_sq, uint16_t* half, Threads<> n, AdamRates<T> rates) {
  for_lanes(n, [=](int64_t i, int count) {
    const Lane<T> g = load_first(grad + i, count);
    const Mask<T> touched = g != Lane<T>(T(0));
    if (SPARSE && !any(touched)) return;
    const Lane<T> p0 = load_first(param + i, count), m0 = load_first(exp_avg + i, count), v0 = load_first(exp_avg_sq + i, count);
    Lane<T> p = p0, m = m0, v = v0;
    const Lane<T> rate = rates.columns ? load(rates.columns + int(i % rates.width)) : Lane<T>(T(1));
    adam_update(rates, g, rate, p, m, v);
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
  });
}

template <class T>
void sparse_adam(T* param, T* grad, T* exp_avg, T* exp_avg_sq, uint16_t* half, Threads<> n, T beta1, T beta2, T step_size, T root_correction,
                 T eps, T decay, const T* columns, int width, int dense, int half_format) {
  const AdamRates<T> rates{beta1, beta2, step_size, root_correction, eps, decay, columns, width};
  if constexpr (std::is_same_v<T, float>) {
    if (half_format == BFLOAT16) {
      if (dense) return adam<false, BFLOAT16>(param, grad, exp_avg, exp_avg_sq, half, n, rates);
      return adam<true, BFLOAT16>(param, grad, exp_avg, exp_avg_sq, half, n, rates);
    }
    if (half_format == FLOAT16) {
      if (dense) return adam<false, FLOAT16>(param, grad, exp_avg, exp_avg_sq, half, n, rates);
      return adam<true, FLOAT16>(param, grad, exp_avg, exp_avg_sq, half, n, rates);
    }
  }
  if (dense) return adam<false, NONE>(param, grad, exp_avg, exp_avg_sq, half, n, rates);
  adam<true, NONE>(param, grad, exp_avg, exp_avg_sq, half, n, rates);
}

POLYFIELD_OP(sparse_adam_f32, sparse_adam<float>)
POLYFIELD_OP(sparse_adam_f64, sparse_adam<double>)

}  // namespace polyfield
