// Multiresolution hash encoding (Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, equations 1 to 4):
// points (N, D) in [0, 1]^D -> features (N, L F); level l interpolates the 2^D entries around x * resolution[l] linearly.
//
// Where things are (cells, hashes, fractions) is computed with samples in lanes, level after level within a tile. What is
// there is read per sample as short vectors of F numbers, eight independent loads at a time, in place of gather
// instructions. Where a ray's samples stay in one cell (runs), its corners are read once and broadcast to the lanes.
// The table's gradient is owned level by level: no atomics, no reduction, the same bits for any number of threads.
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "lane_math.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {
namespace {

struct Level {
  int64_t resolution, offset, size, hashed;  // offset and size in entries; hashed: size is a power of two
};

// ---- per item: the same for lanes and for CUDA threads ----------------------------------------------------------------

// Beyond [0, 1] as at the border; NaN stays.
template <class R> PF_INLINE R clamped(R x) {
  const R zero(scalar_t<R>(0)), one(scalar_t<R>(1));
  return select(x < zero, zero, select(x > one, one, x));
}

// Cell and fraction of a clamped coordinate. NaN gives the last cell and a NaN fraction.
template <class R> PF_INLINE void locate(R x, int resolution, Lane<int32_t>& cell, R& fraction) {
  const R p = x * R(scalar_t<R>(resolution));
  cell = Lane<int32_t>(min(p, R(scalar_t<R>(resolution - 1))));
  fraction = p - R(cell);
}

// Entries of the cell's corners; bit d of the corner's number says which end of axis d.
template <int D, bool HASHED> PF_INLINE void corners(const Lane<int32_t>* cell, uint32_t row, uint32_t mask, Lane<uint32_t>* index) {
  using U = Lane<uint32_t>;
  const uint32_t primes[3] = {1u, 2654435761u, 805459861u}, strides[3] = {1u, row, row * row};
  index[0] = U(0u);
  for (int d = D - 1; d >= 0; --d) {
    const U step(HASHED ? primes[d] : strides[d]);
    U low = d == 0 ? U(cell[0]) : U(cell[d]) * step, high = low + step;
    if (HASHED) low = low & U(mask), high = high & U(mask);
    for (int k = (1 << (D - 1 - d)) - 1; k >= 0; --k) {
      const U above = index[k];
      index[2 * k + 1] = HASHED ? above ^ high : above + high;
      index[2 * k] = HASHED ? above ^ low : above + low;
    }
  }
}

#if !PF_CUDA

// ---- short vectors: the F features of one entry -----------------------------------------------------------------------

template <class T, int F> struct Short { typedef T type __attribute__((vector_size(F * sizeof(T)), may_alias)); };
template <class T, int F> using Vec = typename Short<T, F>::type;

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

template <class V, class P> PF_INLINE V read(const P* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class P, class V> PF_INLINE void write(P* p, V v) { std::memcpy(p, &v, sizeof v); }

template <int F> PF_INLINE Vec<float, F> fetch(const float* p) { return read<Vec<float, F>>(p); }
template <int F> PF_INLINE Vec<double, F> fetch(const double* p) { return read<Vec<double, F>>(p); }
template <int F> PF_INLINE Vec<float, F> fetch(const BFloat16* p) {
#if defined(__SSE2__)
  if constexpr (F == 2 || F == 4) {  // what the generic line below becomes too slowly for less than a register
    int64_t raw = 0;
    std::memcpy(&raw, p, 2 * F);
    const __m128i v = _mm_unpacklo_epi16(_mm_setzero_si128(), F == 2 ? _mm_cvtsi32_si128(int(raw)) : _mm_cvtsi64_si128(raw));
    Vec<float, F> r;
    std::memcpy(&r, &v, sizeof r);
    return r;
  }
#endif
  return (Vec<float, F>)(__builtin_convertvector(read<Vec<uint16_t, F>>(p), Vec<uint32_t, F>) << 16);
}
template <int F> PF_INLINE Vec<float, F> fetch(const Float16* p) {
#if defined(__F16C__)
  if constexpr (F == 8) return (Vec<float, F>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  else {
    uint64_t raw = 0;
    std::memcpy(&raw, p, 2 * F);
    const __m128 v = _mm_cvtph_ps(_mm_cvtsi64_si128((long long)raw));
    Vec<float, F> r;
    std::memcpy(&r, &v, sizeof r);
    return r;
  }
#else
  // Exponent and mantissa in place, rescaled by 2^112 (which also makes subnormals right); infinities and NaN put back.
  using U = Vec<uint32_t, F>;
  const U h = __builtin_convertvector(read<Vec<uint16_t, F>>(p), U);
  const U magnitude = (h & 0x7fff) << 13;
  const U special = (U)((h & 0x7c00) == 0x7c00) & 0x7f800000u;
  return (Vec<float, F>)((U)((Vec<float, F>)magnitude * 0x1p112f) | special | ((h & 0x8000) << 16));
#endif
}

// ---- a tile of samples at one level -----------------------------------------------------------------------------------

constexpr int TILE = 256, PAD = 16;  // PAD keeps arrays of a power of two from falling on the same cache sets

// The lanes of the vector that ends with `now`, one place earlier: the last of `before`, then all of `now` but its last
template <class T> PF_INLINE Lane<T> shifted_in(Lane<T> before, Lane<T> now) {
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
  if constexpr (sizeof(T) == 4) return Lane<T>((typename Lane<T>::V)_mm512_alignr_epi32((__m512i)now.v, (__m512i)before.v, 15));
#endif
  Lane<T> r;
  r.v[0] = before.v[LANES - 1];
  for (int i = 1; i < LANES; ++i) r.v[i] = now.v[i - 1];
  return r;
}

// points (n, D) -> clamped coordinates, axis by axis; zeros up to a whole vector
template <int D, class T> PF_INLINE void split_axes(const T* points, T* columns, int64_t stride, int64_t n) {
  const int64_t padded = ceil_div(n, LANES) * LANES;
  for (int64_t i = 0; i < n; ++i)
    for (int d = 0; d < D; ++d) columns[d * stride + i] = points[i * D + d];
  for (int d = 0; d < D; ++d) {
    T* column = columns + d * stride;
    for (int64_t i = n; i < padded; ++i) column[i] = T(0);
    for (int64_t i = 0; i < padded; i += LANES) store(column + i, clamped(load(column + i)));
  }
}

template <int D, class T> struct Tile {
  alignas(64) T fraction[D][TILE + PAD];
  alignas(64) uint32_t index[1 << D][TILE + PAD];
  uint32_t starts[TILE / LANES];  // bit i: sample i is in another cell than the one before
  int count, runs;

  template <bool HASHED> PF_INLINE void locate_all(const Level& level, const T* columns, int64_t stride) {
    Lane<int32_t> before[D];
    runs = 0;
    for (int d = 0; d < D; ++d) before[d] = Lane<int32_t>(-1);
    for (int i = 0; i < count; i += LANES) {
      Lane<int32_t> cell[D];
      Lane<uint32_t> corner[1 << D];
      Mask<int32_t> same(true);
      for (int d = 0; d < D; ++d) {
        Lane<T> f;
        locate(load(columns + d * stride + i), int(level.resolution), cell[d], f);
        store(fraction[d] + i, f);
        same = same & (cell[d] == shifted_in(before[d], cell[d]));
        before[d] = cell[d];
      }
      corners<D, HASHED>(cell, uint32_t(level.resolution + 1), uint32_t(level.size - 1), corner);
      for (int k = 0; k < 1 << D; ++k) store(index[k] + i, corner[k]);
      starts[i / LANES] = bits(same) ^ ALL_BITS;
      runs += __builtin_popcount(starts[i / LANES]);
    }
  }
  // The next n <= TILE samples, from clamped coordinates axis by axis (readable up to a whole vector)
  PF_INLINE void locate_level(const Level& level, const T* columns, int64_t stride, int n) {
    count = n;
    if (level.hashed) locate_all<true>(level, columns, stride);
    else locate_all<false>(level, columns, stride);
  }
  PF_INLINE bool has_runs() const { return runs * 3 < count; }

  // The corners' weights, samples in lanes
  PF_INLINE void weights(int i, Lane<T>* w) const {
    w[0] = Lane<T>(T(1));
    for (int d = D - 1; d >= 0; --d) {
      const Lane<T> f = load(fraction[d] + i);
      for (int k = (1 << (D - 1 - d)) - 1; k >= 0; --k) {
        const Lane<T> above = w[k];
        w[2 * k + 1] = above * f;
        w[2 * k] = above - w[2 * k + 1];
      }
    }
  }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

template <int D, int F, class T, class H> PF_INLINE void corner_values(const Tile<D, T>& tile, const H* table, int i, Vec<T, F>* v) {
  for (int c = 0; c < 1 << D; ++c) v[c] = fetch<F>(table + F * int64_t(tile.index[c][i]));
}

// Each sample by itself
template <int D, int F, class T, class H> PF_INLINE void interpolate_each(const Tile<D, T>& tile, const H* table, T* out, int64_t stride) {
  for (int i = 0; i < tile.count; ++i) {
    Vec<T, F> v[1 << D];
    corner_values<D, F>(tile, table, i, v);
    for (int d = 0; d < D; ++d) {
      const T f = tile.fraction[d][i];
      for (int k = 0; k < 1 << (D - 1 - d); ++k) v[k] = v[2 * k] + f * (v[2 * k + 1] - v[2 * k]);
    }
    write(out + i * stride, v[0]);
  }
}

// F vectors -> rows of F
template <int F, class T> PF_INLINE void interleave(const Lane<T>* columns, T* rows) {
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
  if constexpr (F == 2 && std::is_same_v<T, float>) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    _mm512_storeu_ps(rows, _mm512_permutex2var_ps((__m512)columns[0].v, low, (__m512)columns[1].v));
    _mm512_storeu_ps(rows + 16, _mm512_permutex2var_ps((__m512)columns[0].v, high, (__m512)columns[1].v));
    return;
  }
#endif
  T plain[F][LANES];
  for (int f = 0; f < F; ++f) store(plain[f], columns[f]);
  for (int k = 0; k < LANES; ++k)
    for (int f = 0; f < F; ++f) rows[k * F + f] = plain[f][k];
}

// Samples in lanes; the corners of each run are broadcast. A later run overwrites the lanes from its start on.
template <int D, int F, class T, class H> PF_INLINE void interpolate_runs(const Tile<D, T>& tile, const H* table, T* out, int64_t stride) {
  for (int i = 0; i < tile.count; i += LANES) {
    Lane<T> w[1 << D], result[F];
    tile.weights(i, w);
    uint32_t starts = tile.starts[i / LANES] | 1u;
    do {
      const int start = __builtin_ctz(starts);
      starts &= starts - 1;
      Lane<T> sum[F];
      for (int c = 0; c < 1 << D; ++c) {
        const Vec<T, F> v = fetch<F>(table + F * int64_t(tile.index[c][i + start]));
        for (int f = 0; f < F; ++f) sum[f] = c == 0 ? w[0] * Lane<T>(v[f]) : sum[f] + w[c] * Lane<T>(v[f]);
      }
      const Mask<T> mine(iota<int32_t>() >= Lane<int32_t>(start));
      for (int f = 0; f < F; ++f) result[f] = start == 0 ? sum[f] : select(mine, sum[f], result[f]);
    } while (starts);
    alignas(64) T rows[LANES * F];
    interleave<F>(result, rows);
    if (tile.count - i >= LANES)
      for (int k = 0; k < LANES; ++k) write(out + (i + k) * stride, read<Vec<T, F>>(rows + k * F));
    else
      for (int k = 0; k < tile.count - i; ++k) write(out + (i + k) * stride, read<Vec<T, F>>(rows + k * F));
  }
}

constexpr int64_t BLOCK = 2048;

// each(tile, level, first sample) for every tile of a block at every level: a block goes through
// one level after the other, so that a level's entries stay in the cache from tile to tile.
template <int D, class T, class Each> PF_INLINE void for_each_tile(const T* points, const Level* levels, int level_count, int64_t n, Each each) {
  parallel_chunks(n, BLOCK, [=](int64_t begin, int64_t end) {
    constexpr int64_t stride = BLOCK + PAD;
    alignas(64) T columns[D * stride];
    Tile<D, T> tile;
    split_axes<D>(points + begin * D, columns, stride, end - begin);
    for (int l = 0; l < level_count; ++l)
      for (int64_t i = begin; i < end; i += TILE) {
        tile.locate_level(levels[l], columns + (i - begin), stride, int(end - i < TILE ? end - i : TILE));
        each(tile, l, i);
      }
  });
}

template <int D, int F, class T, class H>
void forward(const T* points, const H* table, const Level* levels, T* features, int64_t n, int level_count) {
  const int64_t stride = int64_t(level_count) * F;
  for_each_tile<D>(points, levels, level_count, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    const H* entries = table + levels[l].offset * F;
    T* out = features + first * stride + l * F;
    if (tile.has_runs()) interpolate_runs<D, F>(tile, entries, out, stride);
    else interpolate_each<D, F>(tile, entries, out, stride);
  });
}

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
    parallel_pieces(level_count, [=](int64_t piece) {
      const int64_t l = level_count - 1 - piece;  // the finest, which cost most, first
      T* table = grad_table + levels[l].offset * F;
      Tile<D, T> tile;
      for (int64_t begin = 0; begin < count; begin += TILE) {
        tile.locate_level(levels[l], columns + begin, room, int(count - begin < TILE ? count - begin : TILE));
        const T* gradient = by_level + (l * room + begin) * F;
        if (JACOBIAN)
          scatter_with_jacobian<D, F>(tile, points + (base + begin) * D, levels[l].resolution, gradient,
                                      jacobian_by_level + (l * room + begin) * F * D, table);
        else if (tile.has_runs()) scatter_runs<D, F>(tile, gradient, table);
        else scatter_each<D, F>(tile, gradient, table);
      }
    });
  }
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
  dispatch(dimensions, width, [=](auto d, auto f) { forward<d, f>(points, table, (const Level*)levels, features, n, level_count); });
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

#define PF_HASH_OPS(suffix, T, H)                                                                \
  POLYFIELD_OP("hash_encode_" suffix, hash_encode<T, H>)                                         \
  POLYFIELD_OP("hash_encode_with_gradient_" suffix, hash_encode_with_gradient<T, H>)             \
  POLYFIELD_OP("hash_encode_backward_points_" suffix, hash_encode_backward_points<T, H>)
PF_HASH_OPS("f32", float, float)
PF_HASH_OPS("f64", double, double)
PF_HASH_OPS("bf16", float, BFloat16)
PF_HASH_OPS("f16", float, Float16)
#undef PF_HASH_OPS
POLYFIELD_OP("hash_encode_backward_table_f32", hash_encode_backward_table<float>)
POLYFIELD_OP("hash_encode_backward_table_f64", hash_encode_backward_table<double>)

#endif

}  // namespace
}  // namespace polyfield
