// What the last layers' outputs of a radiance field become: a density, a colour. NaN stays NaN, for whoever looks at the loss.
#pragma once
#include "lane_math.h"

namespace polyfield {

template <class R> PF_INLINE R density_of(R x) {
  const R most(scalar_t<R>(15));
  return select(x == x, exp(select(x > most, most, x)), x);
}
template <class R> PF_INLINE R color_of(R x) { return select(x == x, sigmoid(x), x); }

}  // namespace polyfield
