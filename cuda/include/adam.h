// Adam (Kingma and Ba, ICLR 2015): m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr m' / (sqrt(v') + eps).
#pragma once
#include "lane_math.h"

namespace polyfield {

template <class T> struct AdamRates {
  T beta1, beta2, step_size, root_correction, eps, decay;  // decay: how much of the parameter weight decay takes
  const T* columns;  // 0, or factors of the learning rate: number i has columns[i % width], repeated beyond a lane's width
  int width;
};

template <class R> PF_INLINE void adam_update(const AdamRates<scalar_t<R>>& rates, R g, R rate, R& p, R& m, R& v) {
  using S = scalar_t<R>;
  m = R(rates.beta1) * m + R(S(1) - rates.beta1) * g;
  v = R(rates.beta2) * v + R(S(1) - rates.beta2) * g * g;
  p = p - p * rate * R(rates.decay) - rate * R(rates.step_size) * m / (sqrt(v) * R(rates.root_correction) + R(rates.eps));
}

}  // namespace polyfield
