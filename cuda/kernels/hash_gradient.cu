// Spatial derivatives of the hash encoding of hash_encode.cu: features with their Jacobian from one read of the table, and the
// gradient that reaches the points. The interpolant is linear along each axis, so value, first and mixed second derivatives
// come out of the same reduction of the corners, axis by axis.
#include "hash_tile.h"
#include "op.h"

namespace polyfield {
namespace {

// Value, first derivatives and mixed second derivatives of the interpolant with respect to the fractions.
template <int D, class V> struct Taylor {
  V value, first[D], mixed[D][D];  // mixed[a][b] for a < b; the interpolant is linear along each axis
};

template <int D, bool SECOND, class V, class T> PF_INLINE Taylor<D, V> differentiate(V* v, const T* fraction) {
  V first[D][1 << D], mixed[D][D][1 << D];
  for (int d = 0; d < D; ++d) {
    const T f = fraction[d];
    for (int k = 0; k < 1 << (D - 1 - d); ++k) {
      for (int a = 0; a < d; ++a) {
        if (SECOND) {
          for (int b = a + 1; b < d; ++b) mixed[a][b][k] = mixed[a][b][2 * k] + f * (mixed[a][b][2 * k + 1] - mixed[a][b][2 * k]);
          mixed[a][d][k] = first[a][2 * k + 1] - first[a][2 * k];
        }
        first[a][k] = first[a][2 * k] + f * (first[a][2 * k + 1] - first[a][2 * k]);
      }
      first[d][k] = v[2 * k + 1] - v[2 * k];
      v[k] = v[2 * k] + f * first[d][k];
    }
  }
  Taylor<D, V> t;
  t.value = v[0];
  for (int a = 0; a < D; ++a) {
    t.first[a] = first[a][0];
    if (SECOND)
      for (int b = a + 1; b < D; ++b) t.mixed[a][b] = mixed[a][b][0];
  }
  return t;
}

// Gradient to a point from one level: from the features' gradient g and (SECOND) the Jacobian's, (F, D). added to `total`.
template <int D, int F, bool SECOND, class T>
PF_INLINE void point_gradient(Vec<T, F>* v, const T* fraction, const T* slope, Vec<T, F> g, const T* grad_jacobian, T* total) {
  const auto t = differentiate<D, SECOND>(v, fraction);
  for (int d = 0; d < D; ++d) {
    Vec<T, F> s = g * t.first[d];
    if (SECOND)
      for (int e = 0; e < D; ++e) {
        if (e == d) continue;
        Vec<T, F> column;
        for (int f = 0; f < F; ++f) column[f] = slope[e] * grad_jacobian[f * D + e];
        s += column * t.mixed[d < e ? d : e][d < e ? e : d];
      }
    T sum = 0;
    for (int f = 0; f < F; ++f) sum += s[f];
    // Not 0 * sum outside: a NaN or infinite feature is no business of a clamped point.
    total[d] += slope[d] > T(0) ? slope[d] * sum : T(0);
  }
}

#if PF_CUDA

template <int D, int W, class T, class H>
PF_INLINE void encode_item_with_gradient(const T* point, const H* table, const Level& level, T* features, T* jacobian) {
  const Place<D, T> at = place<D>(level, point);
  const H* entries = table + level.offset * WIDTH;
  T slope[D];
  slopes<D>(point, level.resolution, slope);
  for (int w = 0; w < WIDTH; w += W) {
    Vec<T, W> v[1 << D];
    corner_values<D, W>(at, entries, WIDTH, w, v);
    const auto t = differentiate<D, false>(v, at.fraction);
    write(features + w, t.value);
    for (int d = 0; d < D; ++d)
      for (int f = 0; f < W; ++f) jacobian[(w + f) * D + d] = slope[d] * t.first[d][f];
  }
}

template <int D, int W, bool SECOND, class T, class H>
PF_INLINE void point_gradient_item(const T* point, const H* table, const Level* levels, const T* grad_features, const T* grad_jacobian, T* grad_point,
                                   int level_count) {
  T total[D] = {};
  for (int l = 0; l < level_count; ++l) {
    const Place<D, T> at = place<D>(levels[l], point);
    T slope[D];
    slopes<D>(point, levels[l].resolution, slope);
    for (int w = 0; w < WIDTH; w += W) {
      Vec<T, W> v[1 << D];
      corner_values<D, W>(at, table + levels[l].offset * WIDTH, WIDTH, w, v);
      const int from = l * WIDTH + w;
      point_gradient<D, W, SECOND>(v, at.fraction, slope, fetch<W>(grad_features + from), SECOND ? grad_jacobian + from * D : nullptr, total);
    }
  }
  for (int d = 0; d < D; ++d) grad_point[d] = total[d];
}

#else

template <int D, int F, class T, class H>
void forward_with_gradient(const T* points, const H* table, const Level* levels, T* features, T* jacobian, int64_t n, int level_count) {
  const int64_t stride = int64_t(level_count) * F;
  for_each_tile<D>(points, levels, level_count, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    for (int i = 0; i < tile.count; ++i) {
      Vec<T, F> v[1 << D];
      T fraction[D], slope[D];
      for (int d = 0; d < D; ++d) fraction[d] = tile.fraction[d][i];
      slopes<D>(points + (first + i) * D, levels[l].resolution, slope);
      corner_values<D, F>(tile, table + levels[l].offset * F, i, v);
      const auto t = differentiate<D, false>(v, fraction);
      const int64_t at = (first + i) * stride + l * F;
      write(features + at, t.value);
      for (int d = 0; d < D; ++d) {
        const Vec<T, F> scaled = slope[d] * t.first[d];
        for (int f = 0; f < F; ++f) jacobian[(at + f) * D + d] = scaled[f];
      }
    }
  });
}

template <int D, int F, bool SECOND, class T, class H>
void backward_points(const T* points, const H* table, const Level* levels, const T* grad_features, const T* grad_jacobian, T* grad_points,
                     int64_t n, int level_count) {
  const int64_t stride = int64_t(level_count) * F;
  for_each_tile<D>(points, levels, level_count, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    for (int i = 0; i < tile.count; ++i) {
      Vec<T, F> v[1 << D];
      T fraction[D], slope[D], *total = grad_points + (first + i) * D;
      for (int d = 0; d < D; ++d) {
        fraction[d] = tile.fraction[d][i];
        if (l == 0) total[d] = T(0);
      }
      slopes<D>(points + (first + i) * D, levels[l].resolution, slope);
      corner_values<D, F>(tile, table + levels[l].offset * F, i, v);
      const int64_t at = (first + i) * stride + l * F;
      point_gradient<D, F, SECOND>(v, fraction, slope, read<Vec<T, F>>(grad_features + at), SECOND ? grad_jacobian + at * D : nullptr, total);
    }
  });
}

#endif

}  // namespace

// ---- entry points ------------------------------------------------------------------------------------------------------

template <class T, class H>
void hash_encode_with_gradient(const T* points, const H* table, const int64_t* levels_, T* features, T* jacobian, Threads<> items, int64_t n,
                               int dimensions, int level_count, int width) {
  const Level* levels = (const Level*)levels_;
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
#if PF_CUDA
    for_parts(items, n, [=](int64_t i, int l) {
      const int64_t at = (i * level_count + l) * WIDTH;
      if (i >= 0) encode_item_with_gradient<D, F>(points + i * D, table, levels[l], features + at, jacobian + at * D);
    });
#else
    forward_with_gradient<D, F>(points, table, levels, features, jacobian, n, level_count);
#endif
  });
}

template <class T, class H>
void hash_encode_backward_points(const T* points, const H* table, const int64_t* levels_, const T* grad_features, const T* grad_jacobian,
                                 T* grad_points, Threads<> n, int64_t, int dimensions, int level_count, int width) {
  const Level* levels = (const Level*)levels_;
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
#if PF_CUDA
    for_each(n, [=](int64_t i) {
      const int64_t at = i * level_count * WIDTH;
      const T* point = points + i * D;
      if (grad_jacobian) point_gradient_item<D, F, true>(point, table, levels, grad_features + at, grad_jacobian + at * D, grad_points + i * D, level_count);
      else point_gradient_item<D, F, false>(point, table, levels, grad_features + at, (const T*)nullptr, grad_points + i * D, level_count);
    });
#else
    if (grad_jacobian) backward_points<D, F, true>(points, table, levels, grad_features, grad_jacobian, grad_points, n, level_count);
    else backward_points<D, F, false>(points, table, levels, grad_features, grad_jacobian, grad_points, n, level_count);
#endif
  });
}

POLYFIELD_OP(hash_encode_with_gradient_f32, hash_encode_with_gradient<float, float>)
POLYFIELD_OP(hash_encode_with_gradient_f64, hash_encode_with_gradient<double, double>)
POLYFIELD_OP(hash_encode_with_gradient_bf16, hash_encode_with_gradient<float, BFloat16>)
POLYFIELD_OP(hash_encode_with_gradient_f16, hash_encode_with_gradient<float, Float16>)
POLYFIELD_OP(hash_encode_backward_points_f32, hash_encode_backward_points<float, float>)
POLYFIELD_OP(hash_encode_backward_points_f64, hash_encode_backward_points<double, double>)
POLYFIELD_OP(hash_encode_backward_points_bf16, hash_encode_backward_points<float, BFloat16>)
POLYFIELD_OP(hash_encode_backward_points_f16, hash_encode_backward_points<float, Float16>)

}  // namespace polyfield
