// The middle of each packed interval: x = o_r + (t_start + t_end) / 2 d_r for the interval's ray r.
#include "lane.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {
namespace {

template <class T>
PF_INLINE void interval_point(const T* origins, const T* directions, const T* t_starts, const T* t_ends, const int32_t* ray_indices, T* points, int64_t i) {
  const int64_t r = 3 * int64_t(ray_indices[i]);
  const T middle = (t_starts[i] + t_ends[i]) * T(0.5);
  for (int d = 0; d < 3; ++d) points[3 * i + d] = origins[r + d] + directions[r + d] * middle;
}

#if !PF_CUDA

template <class T>
void interval_points(const T* origins, const T* directions, const T* t_starts, const T* t_ends, const int32_t* ray_indices, T* points, int64_t n) {
  parallel_chunks(n, 4096, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) interval_point(origins, directions, t_starts, t_ends, ray_indices, points, i);
  });
}

POLYFIELD_OP("interval_points_f32", interval_points<float>)
POLYFIELD_OP("interval_points_f64", interval_points<double>)

#endif

}  // namespace
}  // namespace polyfield
