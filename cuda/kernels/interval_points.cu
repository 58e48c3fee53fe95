// The middle of each packed interval: x = o_r + (t_start + t_end) / 2 d_r for the interval's ray r.
#include "op.h"

namespace polyfield {

template <class T>
void interval_points(const T* origins, const T* directions, const T* t_starts, const T* t_ends, const int32_t* ray_indices, T* points, Threads<> n) {
  for_each(n, [=](int64_t i) {
    const int64_t r = 3 * int64_t(ray_indices[i]);
    const T middle = (t_starts[i] + t_ends[i]) * T(0.5);
    for (int d = 0; d < 3; ++d) points[3 * i + d] = origins[r + d] + directions[r + d] * middle;
  });
}

POLYFIELD_OP(interval_points_f32, interval_points<float>)
POLYFIELD_OP(interval_points_f64, interval_points<double>)

}  // namespace polyfield
