// Spatial derivatives of the hash encoding of hash_encode.cu: features with their Jacobian from one read of the table, the
// gradient that reaches the points, and the derivative along a direction. The interpolant is linear along each axis, so value, first and mixed second derivatives
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

template <int D, int W, class T, class H>
PF_INLINE void encode_item_along(const T* point, const T* direction, const H* table, const Level& level, T* derivatives) {
  const Place<D, T> at = place<D>(level, point);
  T along[D], weight[1 << D], change[1 << D];
  cells_along<D>(point, direction, level.resolution, along);
  weights_along<D>(at.fraction, along, weight, change);
  for (int w = 0; w < WIDTH; w += W) {
    Vec<T, W> v[1 << D];
    corner_values<D, W>(at, table + level.offset * WIDTH, WIDTH, w, v);
    Vec<T, W> sum = change[0] * v[0];
    for (int c = 1; c < 1 << D; ++c) sum += change[c] * v[c];
    write(derivatives + w, sum);
  }
}

#else

// Derivatives of features along a direction per sample, (n, D): interpolation with other weights.
template <int D, int F, class T, class H>
void forward_along(const T* points, const T* directions, const H* table, const Level* levels, T* derivatives, int64_t n, int level_count) {
  fill_rows<F>(table, levels, level_count, derivatives, n, [=](int64_t base, int64_t count, T* out, int64_t sample_stride, int64_t level_stride) {
    encode_tiles<D, F>(points + base * D, table, levels, level_count, out, sample_stride, level_stride, count,
                       [=](const Tile<D, T>& tile, int l, int64_t first, const H* entries, T* to) {
      alignas(64) T along[D][HASH_TILE + PAD], change[1 << D][HASH_TILE + PAD];
      tile.along(points + (base + first) * D, directions + (base + first) * D, levels[l].resolution, along);
      const auto changes = [&](int i, Lane<T>* c) {
        Lane<T> w[1 << D];
        tile.weights_along(i, along, w, c);
      };
      if (tile.has_runs()) return interpolate_runs<D, F>(tile, entries, to, sample_stride, changes);
      for (int i = 0; i < tile.count; i += LANES) {
        Lane<T> c[1 << D];
        changes(i, c);
        for (int k = 0; k < 1 << D; ++k) store(change[k] + i, c[k]);
      }
      for (int i = 0; i < tile.count; ++i) {
        Vec<T, F> v[1 << D];
        corner_values<D, F>(tile, entries, i, v);
        Vec<T, F> sum = change[0][i] * v[0];
        for (int c = 1; c < 1 << D; ++c) sum += change[c][i] * v[c];
        write(to + i * sample_stride, sum);
      }
    });
  });
}

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

// The gradient of a tile's points from that of the features at one level, (n, F), added to `total` axis by axis: corners times
// gradients per sample, what is left in lanes.
template <int D, int F, class T, class H>
PF_INLINE void point_gradients(const Tile<D, T>& tile, const H* entries, T resolution, const T* gradient, T* total, int64_t stride) {
  alignas(64) T dots[1 << D][HASH_TILE + PAD];
  for (int i = 0; i < tile.count; ++i) {
    Vec<T, F> v[1 << D];
    const Vec<T, F> g = read<Vec<T, F>>(gradient + i * F);
    corner_values<D, F>(tile, entries, i, v);
    for (int c = 0; c < 1 << D; ++c) {
      const Vec<T, F> product = v[c] * g;
      T sum = product[0];
      for (int f = 1; f < F; ++f) sum += product[f];
      dots[c][i] = sum;
    }
  }
  for (int i = 0; i < tile.count; i += LANES) {
    Lane<T> v[1 << D], fraction[D];
    for (int c = 0; c < 1 << D; ++c) v[c] = load(dots[c] + i);
    for (int d = 0; d < D; ++d) fraction[d] = load(tile.fraction[d] + i);
    const auto t = differentiate<D, false>(v, fraction);
    for (int d = 0; d < D; ++d) store(total + d * stride + i, load(total + d * stride + i) + Lane<T>(resolution) * t.first[d]);
  }
}

// Level by level, as features are met.
template <int D, int F, class T, class H>
void backward_points(const T* points, const H* table, const Level* levels, const T* grad_features, T* grad_points, int64_t n, int level_count) {
  static thread_local Scratch<T> scratch;
  static thread_local int64_t from;
  const bool near = is_near<F>(table, levels, level_count);
  const int64_t most = near ? ROWS_BLOCK : LEVELS_BLOCK, room = most + HASH_TILE + PAD;
  const auto enter = [=](int l, int64_t begin, int64_t end) {
    if (l == 0) {
      scratch.resize(room * (D + level_count * F));
      from = begin;
      std::memset(scratch.data(), 0, room * D * sizeof(T));
      for (int64_t i = begin; i < end; i += 64)
        split_levels<F>(grad_features + i * level_count * F, scratch.data() + room * D + (i - begin) * F, room * F, int(end - i < 64 ? end - i : 64), level_count);
    }
    if (!near) warm<D>(table + levels[l].offset * F, levels[l].size * F, n, begin, end);
  };
  for_each_tile<D>(points, levels, level_count, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    T *total = scratch.data() + (first - from), *gradient = scratch.data() + room * D + (l * room + first - from) * F;
    point_gradients<D, F>(tile, table + levels[l].offset * F, T(levels[l].resolution), gradient, total, room);
    if (l + 1 < level_count) return;
    for (int i = 0; i < tile.count; ++i) {
      T inside[D];
      slopes<D>(points + (first + i) * D, 1, inside);
      // Not 0 * sum outside: a NaN or infinite feature is no business of a clamped point.
      for (int d = 0; d < D; ++d) grad_points[(first + i) * D + d] = inside[d] > T(0) ? total[d * room + i] : T(0);
    }
  }, most, enter);
}

// With the Jacobian's gradient (N, F, D) too.
template <int D, int F, class T, class H>
void backward_points_twice(const T* points, const H* table, const Level* levels, const T* grad_features, const T* grad_jacobian, T* grad_points,
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
      point_gradient<D, F, true>(v, fraction, slope, read<Vec<T, F>>(grad_features + at), grad_jacobian + at * D, total);
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
    if (grad_jacobian) backward_points_twice<D, F>(points, table, levels, grad_features, grad_jacobian, grad_points, n, level_count);
    else backward_points<D, F>(points, table, levels, grad_features, grad_points, n, level_count);
#endif
  });
}

// d features / d points . directions, (N, L F)
template <class T, class H>
void hash_encode_along(const T* points, const T* directions, const H* table, const int64_t* levels_, T* derivatives, Threads<> items, int64_t n,
                       int dimensions, int level_count, int width) {
  const Level* levels = (const Level*)levels_;
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
#if PF_CUDA
    for_parts(items, n, [=](int64_t i, int l) {
      if (i >= 0) encode_item_along<D, F>(points + i * D, directions + i * D, table, levels[l], derivatives + (i * level_count + l) * WIDTH);
    });
#else
    forward_along<D, F>(points, directions, table, levels, derivatives, n, level_count);
#endif
  });
}

POLYFIELD_OP(hash_encode_along_f32, hash_encode_along<float, float>)
POLYFIELD_OP(hash_encode_along_f64, hash_encode_along<double, double>)
POLYFIELD_OP(hash_encode_along_bf16, hash_encode_along<float, BFloat16>)
POLYFIELD_OP(hash_encode_along_f16, hash_encode_along<float, Float16>)
POLYFIELD_OP(hash_encode_with_gradient_f32, hash_encode_with_gradient<float, float>)
POLYFIELD_OP(hash_encode_with_gradient_f64, hash_encode_with_gradient<double, double>)
POLYFIELD_OP(hash_encode_with_gradient_bf16, hash_encode_with_gradient<float, BFloat16>)
POLYFIELD_OP(hash_encode_with_gradient_f16, hash_encode_with_gradient<float, Float16>)
POLYFIELD_OP(hash_encode_backward_points_f32, hash_encode_backward_points<float, float>)
POLYFIELD_OP(hash_encode_backward_points_f64, hash_encode_backward_points<double, double>)
POLYFIELD_OP(hash_encode_backward_points_bf16, hash_encode_backward_points<float, BFloat16>)
POLYFIELD_OP(hash_encode_backward_points_f16, hash_encode_backward_points<float, Float16>)

}  // namespace polyfield
