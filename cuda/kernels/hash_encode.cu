// Multiresolution hash encoding (Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, equations 1 to 4):
// points (N, D) in [0, 1]^D -> features (N, L F); level l interpolates the 2^D entries around x * resolution[l] linearly.
//
// include/hash_tile.h reads the table; here are the loops over blocks, the derivatives by the points, and the table's
// gradient, which is owned level by level: no atomics, no reduction, the same bits for any number of threads.
#include <vector>

#include "hash_tile.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {
namespace {

#if !PF_CUDA

// ---- spatial derivatives ----------------------------------------------------------------------------------------------

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

// d cell coordinate / d x: the resolution inside, 0 where the point is clamped
template <int D, class T> PF_INLINE void slopes(const T* point, int64_t resolution, T* s) {
  for (int d = 0; d < D; ++d) s[d] = point[d] >= T(0) && point[d] <= T(1) ? T(resolution) : T(0);
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

// Gradient to the points, from the features' gradient and (SECOND) the Jacobian's.
template <int D, int F, bool SECOND, class T, class H>
void backward_points(const T* points, const H* table, const Level* levels, const T* grad_features, const T* grad_jacobian, T* grad_points,
                     int64_t n, int level_count) {
  const int64_t stride = int64_t(level_count) * F;
  for_each_tile<D>(points, levels, level_count, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    for (int i = 0; i < tile.count; ++i) {
      Vec<T, F> v[1 << D];
      T fraction[D], slope[D], *total = grad_points + (first + i) * D;
      for (int d = 0; d < D; ++d) fraction[d] = tile.fraction[d][i];
      slopes<D>(points + (first + i) * D, levels[l].resolution, slope);
      corner_values<D, F>(tile, table + levels[l].offset * F, i, v);
      const auto t = differentiate<D, SECOND>(v, fraction);
      const int64_t at = (first + i) * stride + l * F;
      const Vec<T, F> g = read<Vec<T, F>>(grad_features + at);
      for (int d = 0; d < D; ++d) {
        Vec<T, F> s = g * t.first[d];
        if (SECOND)
          for (int e = 0; e < D; ++e) {
            if (e == d) continue;
            T column[F];
            for (int f = 0; f < F; ++f) column[f] = slope[e] * grad_jacobian[(at + f) * D + e];
            s += read<Vec<T, F>>(column) * t.mixed[d < e ? d : e][d < e ? e : d];
          }
        T sum = 0;
        for (int f = 0; f < F; ++f) sum += s[f];
        // Not 0 * sum outside: a NaN or infinite feature is no business of a clamped point.
        const T share = slope[d] > T(0) ? slope[d] * sum : T(0);
        total[d] = l == 0 ? share : total[d] + share;
      }
    }
  });
}

// ---- gradient to the table --------------------------------------------------------------------------------------------

// Each sample by itself: its gradient is shared out axis by axis.
template <int D, int F, class T> PF_INLINE void scatter_each(const Tile<D, T>& tile, const T* gradient, T* table) {
  for (int i = 0; i < tile.count; ++i) {
    Vec<T, F> v[1 << D];
    v[0] = read<Vec<T, F>>(gradient + i * F);
    for (int d = D - 1; d >= 0; --d) {
      const T f = tile.fraction[d][i];
      for (int k = (1 << (D - 1 - d)) - 1; k >= 0; --k) {
        const Vec<T, F> above = v[k];
        v[2 * k + 1] = f * above;
        v[2 * k] = above - v[2 * k + 1];
      }
    }
    for (int c = 0; c < 1 << D; ++c) {
      T* p = table + F * int64_t(tile.index[c][i]);
      write(p, read<Vec<T, F>>(p) + v[c]);
    }
  }
}

// p[k % F] in lane k of vector b
template <int F, class T> PF_INLINE Lane<T> repeat(const T* p, int b) {
  if constexpr (LANES <= F) return load(p + (b * LANES) % F);
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
  if constexpr (std::is_same_v<T, float>) {
    if constexpr (F == 1) return Lane<float>(*p);
    if constexpr (F == 2) return Lane<float>((Lane<float>::V)_mm512_set1_epi64(read<int64_t>(p)));
    if constexpr (F == 4) return Lane<float>((Lane<float>::V)_mm512_broadcast_f32x4(_mm_loadu_ps(p)));
    if constexpr (F == 8) return Lane<float>((Lane<float>::V)_mm512_broadcast_f32x8(_mm256_loadu_ps(p)));
  }
#endif
  Lane<T> r;
  for (int k = 0; k < LANES; ++k) r.v[k] = p[k % F];
  return r;
}

// Corners times features in lanes, summed up over a run and then added to the table once.
template <int D, int F, class T> PF_INLINE void scatter_runs(const Tile<D, T>& tile, const T* gradient, T* table) {
  constexpr int WIDTH = (1 << D) * F, VECTORS = (WIDTH + LANES - 1) / LANES;
  Lane<T> sign[VECTORS][D], bias[VECTORS][D];  // weight = product over the axes of bias + sign * fraction
  for (int b = 0; b < VECTORS; ++b)
    for (int d = 0; d < D; ++d)
      for (int k = 0; k < LANES; ++k) {
        const bool high = ((b * LANES + k) / F >> d) & 1;
        sign[b][d].v[k] = high ? T(1) : T(-1);
        bias[b][d].v[k] = high ? T(0) : T(1);
      }
  for (int i = 0; i < tile.count;) {
    const int first = i;
    Lane<T> sum[VECTORS];
    for (int b = 0; b < VECTORS; ++b) sum[b] = Lane<T>(T(0));
    do {
      for (int b = 0; b < VECTORS; ++b) {
        Lane<T> w = repeat<F>(gradient + i * F, b);
        for (int d = 0; d < D; ++d) w = w * (bias[b][d] + sign[b][d] * Lane<T>(tile.fraction[d][i]));
        sum[b] += w;
      }
      ++i;
    } while (i < tile.count && !(tile.starts[i / LANES] >> (i % LANES) & 1));
    alignas(64) T corner[VECTORS * LANES];
    for (int b = 0; b < VECTORS; ++b) store(corner + b * LANES, sum[b]);
    for (int c = 0; c < 1 << D; ++c) {
      T* p = table + F * int64_t(tile.index[c][first]);
      write(p, read<Vec<T, F>>(p) + read<Vec<T, F>>(corner + c * F));
    }
  }
}

// From the features' gradient (F per sample) and the Jacobian's (F x D per sample).
template <int D, int F, class T>
PF_INLINE void scatter_with_jacobian(const Tile<D, T>& tile, const T* points, int64_t resolution, const T* gradient, const T* jacobian, T* table) {
  for (int i = 0; i < tile.count; ++i) {
    Vec<T, F> v[1 << D], j[D][1 << D];
    T slope[D];
    slopes<D>(points + i * D, resolution, slope);
    v[0] = read<Vec<T, F>>(gradient + i * F);
    for (int d = 0; d < D; ++d) {
      T column[F];
      for (int f = 0; f < F; ++f) column[f] = slope[d] * jacobian[(i * F + f) * D + d];
      j[d][0] = read<Vec<T, F>>(column);
    }
    for (int d = D - 1; d >= 0; --d) {
      const T f = tile.fraction[d][i];
      for (int k = (1 << (D - 1 - d)) - 1; k >= 0; --k) {
        const Vec<T, F> above = v[k], high = f * above, change = j[d][k];
        v[2 * k + 1] = high + change;
        v[2 * k] = above - high - change;
        for (int e = 0; e < d; ++e) {
          const Vec<T, F> other = j[e][k], part = f * other;
          j[e][2 * k + 1] = part;
          j[e][2 * k] = other - part;
        }
      }
    }
    for (int c = 0; c < 1 << D; ++c) {
      T* p = table + F * int64_t(tile.index[c][i]);
      write(p, read<Vec<T, F>>(p) + v[c]);
    }
  }
}

// Rows of WIDTH numbers per (sample, level) -> level by level. Within 64 samples, so that rows stay in the first-level cache.
template <int WIDTH, class T> PF_INLINE void split_levels(const T* rows, T* levels, int64_t level_stride, int n, int level_count) {
  for (int l = 0; l < level_count; ++l)
    for (int i = 0; i < n; ++i) std::memcpy(levels + l * level_stride + i * WIDTH, rows + (int64_t(i) * level_count + l) * WIDTH, WIDTH * sizeof(T));
}

constexpr int64_t CHUNK = 32768;  // samples per pass: bounds the scratch (128 bytes each at 16 levels of 2)

// Adds to the table: gradients level by level (and F D numbers of the Jacobian's), columns axis by axis, both in rows of
// `stride` samples. Each level has one owner.
template <int D, int F, class T>
void scatter_levels(const T* points, const T* columns, const Level* levels, int level_count, const T* by_level, const T* jacobian_by_level, int64_t level_stride,
                    int64_t stride, T* grad_table, int64_t n) {
  parallel_pieces(level_count, [=](int64_t piece) {
    const int64_t l = level_count - 1 - piece;  // the finest, which cost most, first
    T* table = grad_table + levels[l].offset * F;
    Tile<D, T> tile;
    for (int64_t begin = 0; begin < n; begin += HASH_TILE) {
      tile.locate_level(levels[l], columns + begin, stride, int(n - begin < HASH_TILE ? n - begin : HASH_TILE));
      const T* gradient = by_level + (l * level_stride + begin) * F;
      if (jacobian_by_level)
        scatter_with_jacobian<D, F>(tile, points + begin * D, levels[l].resolution, gradient,
                                    jacobian_by_level + (l * level_stride + begin) * F * D, table);
      else if (tile.has_runs()) scatter_runs<D, F>(tile, gradient, table);
      else scatter_each<D, F>(tile, gradient, table);
    }
  });
}

template <int D, int F, bool JACOBIAN, class T>
void backward_table(const T* points, const Level* levels, const T* grad_features, const T* grad_jacobian, T* grad_table, int64_t n, int level_count) {
  static thread_local std::vector<T> scratch;
  const int64_t room = (n < CHUNK ? ceil_div(n, 64) * 64 : CHUNK) + PAD, row = int64_t(level_count) * F;
  scratch.resize(room * (D + row + (JACOBIAN ? row * D : 0)));
  T *columns = scratch.data(), *by_level = columns + room * D, *jacobian_by_level = by_level + room * row;
  for (int64_t base = 0; base < n; base += CHUNK) {
    const int64_t count = n - base < CHUNK ? n - base : CHUNK;
    parallel_chunks(count, 64, [=](int64_t begin, int64_t end) {
      split_axes<D>(points + (base + begin) * D, columns + begin, room, end - begin);
      split_levels<F>(grad_features + (base + begin) * row, by_level + begin * F, room * F, int(end - begin), level_count);
      if (JACOBIAN)
        split_levels<F * D>(grad_jacobian + (base + begin) * row * D, jacobian_by_level + begin * F * D, room * F * D, int(end - begin), level_count);
    });
    scatter_levels<D, F>(points + base * D, columns, levels, level_count, by_level, JACOBIAN ? jacobian_by_level : nullptr, room, room, grad_table, count);
  }
}

// The same from gradients that lie level by level already: (L, n, F)
template <int D, int F, class T>
void backward_table_by_level(const T* points, const Level* levels, const T* grad_features, T* grad_table, int64_t n, int level_count) {
  static thread_local std::vector<T> scratch;
  const int64_t stride = ceil_div(n, 64) * 64 + PAD;
  scratch.resize(stride * D);
  T* columns = scratch.data();
  parallel_chunks(n, 64, [=](int64_t begin, int64_t end) { split_axes<D>(points + begin * D, columns + begin, stride, end - begin); });
  scatter_levels<D, F>(points, columns, levels, level_count, grad_features, (const T*)nullptr, n, stride, grad_table, n);
}

// ---- entry points: the template arguments from numbers ----------------------------------------------------------------

template <class Call> void dispatch(int dimensions, int features, Call call) {
  auto with = [&](auto d) {
    if (features == 1) call(d, std::integral_constant<int, 1>());
    if (features == 2) call(d, std::integral_constant<int, 2>());
    if (features == 4) call(d, std::integral_constant<int, 4>());
    if (features == 8) call(d, std::integral_constant<int, 8>());
  };
  if (dimensions == 2) with(std::integral_constant<int, 2>());
  if (dimensions == 3) with(std::integral_constant<int, 3>());
}

template <class T, class H>
void hash_encode(const T* points, const H* table, const int64_t* levels, T* features, int64_t n, int dimensions, int level_count, int width) {
  dispatch(dimensions, width, [=](auto d, auto f) { encode<d, f>(points, table, (const Level*)levels, level_count, features, int64_t(level_count) * f, f, n); });
}

template <class T, class H>
void hash_encode_with_gradient(const T* points, const H* table, const int64_t* levels, T* features, T* jacobian, int64_t n, int dimensions,
                               int level_count, int width) {
  dispatch(dimensions, width, [=](auto d, auto f) {
    forward_with_gradient<d, f>(points, table, (const Level*)levels, features, jacobian, n, level_count);
  });
}

template <class T, class H>
void hash_encode_backward_points(const T* points, const H* table, const int64_t* levels, const T* grad_features, const T* grad_jacobian,
                                 T* grad_points, int64_t n, int dimensions, int level_count, int width) {
  dispatch(dimensions, width, [=](auto d, auto f) {
    if (grad_jacobian) backward_points<d, f, true>(points, table, (const Level*)levels, grad_features, grad_jacobian, grad_points, n, level_count);
    else backward_points<d, f, false>(points, table, (const Level*)levels, grad_features, grad_jacobian, grad_points, n, level_count);
  });
}

template <class T>
void hash_encode_backward_table(const T* points, const int64_t* levels, const T* grad_features, const T* grad_jacobian, T* grad_table, int64_t n,
                                int dimensions, int level_count, int width) {
  dispatch(dimensions, width, [=](auto d, auto f) {
    if (grad_jacobian) backward_table<d, f, true>(points, (const Level*)levels, grad_features, grad_jacobian, grad_table, n, level_count);
    else backward_table<d, f, false>(points, (const Level*)levels, grad_features, grad_jacobian, grad_table, n, level_count);
  });
}

template <class T>
void hash_encode_backward_levels(const T* points, const int64_t* levels, const T* grad_features, T* grad_table, int64_t n, int dimensions, int level_count,
                                 int width) {
  dispatch(dimensions, width, [=](auto d, auto f) { backward_table_by_level<d, f>(points, (const Level*)levels, grad_features, grad_table, n, level_count); });
}

#define PF_HASH_OPS(suffix, T, H)                                                                \
  POLYFIELD_OP(hash_encode_##suffix, hash_encode<T, H>)                                         \
  POLYFIELD_OP(hash_encode_with_gradient_##suffix, hash_encode_with_gradient<T, H>)             \
  POLYFIELD_OP(hash_encode_backward_points_##suffix, hash_encode_backward_points<T, H>)
PF_HASH_OPS(f32, float, float)
PF_HASH_OPS(f64, double, double)
PF_HASH_OPS(bf16, float, BFloat16)
PF_HASH_OPS(f16, float, Float16)
#undef PF_HASH_OPS
POLYFIELD_OP(hash_encode_backward_levels_f32, hash_encode_backward_levels<float>)
POLYFIELD_OP(hash_encode_backward_levels_f64, hash_encode_backward_levels<double>)
POLYFIELD_OP(hash_encode_backward_table_f32, hash_encode_backward_table<float>)
POLYFIELD_OP(hash_encode_backward_table_f64, hash_encode_backward_table<double>)

#endif

}  // namespace
}  // namespace polyfield
