// Multiresolution hash encoding of a block of samples (see kernels/hash_encode.cu): what every kernel that encodes shares.
//
// Where things are (cells, hashes, fractions) is computed with samples in lanes, level after level within a tile. What is
// there is read per sample as short vectors of F numbers, eight independent loads at a time, in place of gather
// instructions. Where a ray's samples stay in one cell (runs), its corners are read once and broadcast to the lanes.
//
// In CUDA a thread takes a sample at one level, or at the few whose features fill what memory moves at a time; a block
// stays within those levels, whose entries are then in cache. It is compiled for D and F, which the launch states.
#pragma once
#include "half.h"
#include "lane_math.h"
#include "parallel.h"
#if !PF_CUDA
#include <vector>
#include "scratch.h"
#endif
#if !PF_CUDA && defined(__SSE2__)
#include <immintrin.h>
#endif
#if PF_CUDA && !defined(PF_DIMENSIONS)
#define PF_DIMENSIONS 3
#define PF_FEATURES 2
#endif

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

// Corner values (2^D) -> the value between them
template <int D, class V, class T> PF_INLINE void interpolate(V* v, const T* fraction) {
  for (int d = 0; d < D; ++d)
    for (int k = 0; k < 1 << (D - 1 - d); ++k) v[k] = v[2 * k] + fraction[d] * (v[2 * k + 1] - v[2 * k]);
}

// The corners' weights, and how they change along a direction: `along`, in cells, axis by axis
template <int D, class R> PF_INLINE void weights_along(const R* fraction, const R* along, R* w, R* change) {
  w[0] = R(scalar_t<R>(1)), change[0] = R(scalar_t<R>(0));
  for (int d = D - 1; d >= 0; --d)
    for (int k = (1 << (D - 1 - d)) - 1; k >= 0; --k) {
      const R above = w[k], slope = change[k];
      w[2 * k + 1] = above * fraction[d], w[2 * k] = above - w[2 * k + 1];
      change[2 * k + 1] = slope * fraction[d] + above * along[d], change[2 * k] = slope - change[2 * k + 1];
    }
}

// d cell coordinate / d x: the resolution inside, 0 where the point is clamped
template <int D, class T> PF_INLINE void slopes(const T* point, int64_t resolution, T* s) {
  for (int d = 0; d < D; ++d) s[d] = point[d] >= T(0) && point[d] <= T(1) ? T(resolution) : T(0);
}

// A direction in a level's cells: nothing along an axis on which the point is clamped
template <int D, class T> PF_INLINE void cells_along(const T* point, const T* direction, int64_t resolution, T* along) {
  slopes<D>(point, resolution, along);
  for (int d = 0; d < D; ++d) along[d] = along[d] > T(0) ? along[d] * direction[d] : T(0);
}

// ---- short vectors: the F features of one entry -----------------------------------------------------------------------


#if PF_CUDA

// Read and written in one piece where the hardware can.
template <class T, int F> struct alignas(F * sizeof(T) > 16 ? 16 : F * sizeof(T)) Vec {
  T x[F];
  PF_INLINE T& operator[](int i) { return x[i]; }
  PF_INLINE T operator[](int i) const { return x[i]; }
  PF_INLINE Vec& operator+=(const Vec& o) {
    for (int i = 0; i < F; ++i) x[i] += o.x[i];
    return *this;
  }
};
template <class T, int F> PF_INLINE Vec<T, F> operator+(Vec<T, F> a, const Vec<T, F>& b) { return a += b; }
template <class T, int F> PF_INLINE Vec<T, F> operator-(Vec<T, F> a, const Vec<T, F>& b) {
  for (int i = 0; i < F; ++i) a.x[i] -= b.x[i];
  return a;
}
template <class T, int F> PF_INLINE Vec<T, F> operator*(T s, Vec<T, F> a) {
  for (int i = 0; i < F; ++i) a.x[i] *= s;
  return a;
}
template <class T, int F> PF_INLINE Vec<T, F> operator*(Vec<T, F> a, const Vec<T, F>& b) {
  for (int i = 0; i < F; ++i) a.x[i] *= b.x[i];
  return a;
}

PF_INLINE float widen(BFloat16 h) { return as_float(int32_t(uint32_t(h.bits) << 16)); }
// Exponent and mantissa in place, rescaled by 2^112 (which also makes subnormals right); infinities and NaN put back.
PF_INLINE float widen(Float16 h) {
  const float scaled = as_float(int32_t(uint32_t(h.bits & 0x7fff) << 13)) * 0x1p112f;
  const uint32_t special = (h.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return as_float(int32_t(as_uint(scaled) | special | uint32_t(h.bits & 0x8000) << 16));
}
template <int F, class T> PF_INLINE Vec<T, F> fetch(const T* p) { return *reinterpret_cast<const Vec<T, F>*>(p); }
template <int F, class H> PF_INLINE Vec<float, F> fetch_half(const H* p) {
  struct alignas(F * sizeof(H)) Packed { H x[F]; };
  const Packed packed = *reinterpret_cast<const Packed*>(p);
  Vec<float, F> v;
  for (int i = 0; i < F; ++i) v.x[i] = widen(packed.x[i]);
  return v;
}
template <int F> PF_INLINE Vec<float, F> fetch(const BFloat16* p) { return fetch_half<F>(p); }
template <int F> PF_INLINE Vec<float, F> fetch(const Float16* p) { return fetch_half<F>(p); }
template <class T, int F> PF_INLINE void write(T* p, const Vec<T, F>& v) { *reinterpret_cast<Vec<T, F>*>(p) = v; }

// Where one point lies at one level.
template <int D, class T> struct Place {
  T fraction[D];
  uint32_t index[1 << D];
};
template <int D, class T> PF_INLINE Place<D, T> place(const Level& level, const T* point) {
  Place<D, T> at;
  int32_t cell[D];
  for (int d = 0; d < D; ++d) locate(clamped(point[d]), int(level.resolution), cell[d], at.fraction[d]);
  if (level.hashed) corners<D, true>(cell, uint32_t(level.resolution + 1), uint32_t(level.size - 1), at.index);
  else corners<D, false>(cell, uint32_t(level.resolution + 1), uint32_t(level.size - 1), at.index);
  return at;
}

constexpr int WIDTH = PF_FEATURES;                        // F
constexpr int SECTOR = WIDTH < 8 ? 8 / WIDTH : 1;  // levels whose features, in float32, fill the 32 bytes that memory moves

// f(i, part) by one thread: sample i of n, or -1 for threads that fill the last block, and the part of the levels that its
// block looks at.
template <int BLOCK, class F> PF_INLINE void for_parts(Threads<BLOCK> items, int64_t n, F f) {
  for_each(items, [=](int64_t item) {
    const uint32_t blocks = uint32_t(ceil_div(n, BLOCK)), part = uint32_t(item / BLOCK) / blocks;
    const int64_t i = item - int64_t(part) * blocks * BLOCK;
    f(i < n ? i : int64_t(-1), int(part));
  });
}

// A point at a level. Features beyond four per entry are done four by four, to spare registers.
template <int D, int W, class T, class H> PF_INLINE void corner_values(const Place<D, T>& at, const H* entries, int width, int w, Vec<T, W>* v) {
  for (int c = 0; c < 1 << D; ++c) v[c] = fetch<W>(entries + width * int64_t(at.index[c]) + w);
}

#else

template <class T, int F> struct Short { typedef T type __attribute__((vector_size(F * sizeof(T)), may_alias)); };
template <class T, int F> using Vec = typename Short<T, F>::type;

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

constexpr int HASH_TILE = 256, PAD = 16;  // PAD keeps arrays of a power of two from falling on the same cache sets

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
  alignas(64) T fraction[D][HASH_TILE + PAD];
  alignas(64) uint32_t index[1 << D][HASH_TILE + PAD];
  uint32_t starts[HASH_TILE / LANES];  // bit i: sample i is in another cell than the one before
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
  // The next n <= HASH_TILE samples, from clamped coordinates axis by axis (readable up to a whole vector)
  PF_INLINE void locate_level(const Level& level, const T* columns, int64_t stride, int n) {
    count = n;
    if (level.hashed) locate_all<true>(level, columns, stride);
    else locate_all<false>(level, columns, stride);
  }
  PF_INLINE bool has_runs() const { return runs * 3 < count; }

  // Directions (count, D) in cells of a level
  PF_INLINE void along(const T* points, const T* directions, int64_t resolution, T (*to)[HASH_TILE + PAD]) const {
    for (int i = 0; i < count; ++i) {
      T cells[D];
      cells_along<D>(points + i * D, directions + i * D, resolution, cells);
      for (int d = 0; d < D; ++d) to[d][i] = cells[d];
    }
    for (int i = count; i < (count + LANES - 1) / LANES * LANES; ++i)
      for (int d = 0; d < D; ++d) to[d][i] = T(0);
  }
  PF_INLINE void weights_along(int i, const T (*cells)[HASH_TILE + PAD], Lane<T>* w, Lane<T>* change) const {
    Lane<T> f[D], a[D];
    for (int d = 0; d < D; ++d) f[d] = load(fraction[d] + i), a[d] = load(cells[d] + i);
    polyfield::weights_along<D>(f, a, w, change);
  }

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

// Samples in lanes, corners weighted by weights(i, w); the corners of each run are broadcast. A later run overwrites the
// lanes from its start on.
template <int D, int F, class T, class H, class W>
PF_INLINE void interpolate_runs(const Tile<D, T>& tile, const H* table, T* out, int64_t stride, W weights) {
  for (int i = 0; i < tile.count; i += LANES) {
    Lane<T> w[1 << D], result[F];
    weights(i, w);
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

// ---- all samples ------------------------------------------------------------------------------------------------------

// Samples that go through one level after the other. Rows of all levels' features have to stay in the second-level cache
// meanwhile; features that lie level by level need not, and a level's entries are then met while they are still cached:
// with tables of many megabytes that an optimizer has just evicted, this halves the time.
constexpr int64_t ROWS_BLOCK = 2048, LEVELS_BLOCK = 32768;
constexpr int64_t NEAR_LEVEL = 1 << 20, NEAR_TABLE = 8 << 20;  // bytes of a level, of a table that caches hold

// A level's entries (or its gradient's), into the caches, by one of those that work on n samples: the part from begin to end.
// In order a line comes several times faster than where samples happen to meet it; done where they meet most lines anyway
// (a sample meets 2^(D-1): neighbours along the first axis share one) and the second-level cache does not hold them.
template <int D, class T> PF_INLINE void warm(const T* entries, int64_t count, int64_t n, int64_t begin, int64_t end) {
  constexpr int64_t LINE = 64 / int64_t(sizeof(T));
  if (n * (1 << (D - 1)) * LINE < count || count * int64_t(sizeof(T)) < NEAR_LEVEL) return;
  int sum = 0;
  for (int64_t i = count * begin / n; i < count * end / n; i += LINE) sum += *(const unsigned char*)(entries + i);
  __asm__ volatile("" ::"r"(sum));
}

// each(tile, level, first sample) for every tile of the samples from begin to end at every level, after enter(level, begin, end)
template <int D, class T, class Each, class Enter>
PF_INLINE void tiles_between(const T* points, const Level* levels, int level_count, int64_t begin, int64_t end, Each each, Enter enter) {
  static thread_local std::vector<T> scratch;
  const int64_t stride = ceil_div(end - begin, LANES) * LANES + PAD;
  if (int64_t(scratch.size()) < D * stride) scratch.resize(D * stride);
  T* columns = scratch.data();
  Tile<D, T> tile;
  split_axes<D>(points + begin * D, columns, stride, end - begin);
  for (int l = 0; l < level_count; ++l) {
    enter(l, begin, end);
    for (int64_t i = begin; i < end; i += HASH_TILE) {
      tile.locate_level(levels[l], columns + (i - begin), stride, int(end - i < HASH_TILE ? end - i : HASH_TILE));
      each(tile, l, i);
    }
  }
}

// The same for n samples, a share of them by each thread
template <int D, class T, class Each, class Enter>
PF_INLINE void for_each_tile(const T* points, const Level* levels, int level_count, int64_t n, Each each, int64_t most, Enter enter) {
  const int64_t share = ceil_div(ceil_div(n, thread_count()), HASH_TILE) * HASH_TILE;
  parallel_chunks(n, share < most ? (share > 0 ? share : 1) : most, [=](int64_t begin, int64_t end) {
    tiles_between<D>(points, levels, level_count, begin, end, each, enter);
  });
}

template <int D, class T, class Each> PF_INLINE void for_each_tile(const T* points, const Level* levels, int level_count, int64_t n, Each each) {
  for_each_tile<D>(points, levels, level_count, n, each, ROWS_BLOCK, [](int, int64_t, int64_t) {});
}

// points (n, D) -> F numbers of sample i at level l in out[i sample_stride + l level_stride], by
// each(tile, level, first sample, entries of the level, where to)
template <int D, int F, class T, class H, class Each>
void encode_tiles(const T* points, const H* table, const Level* levels, int level_count, T* out, int64_t sample_stride, int64_t level_stride, int64_t n,
                  Each each) {
  for_each_tile<D>(points, levels, level_count, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    each(tile, l, first, table + levels[l].offset * F, out + first * sample_stride + l * level_stride);
  }, sample_stride == F ? LEVELS_BLOCK : ROWS_BLOCK, [=](int l, int64_t begin, int64_t end) {
    if (sample_stride == F) warm<D>(table + levels[l].offset * F, levels[l].size * F, n, begin, end);
  });
}

// The features of a tile at a level, `stride` numbers between samples
template <int D, int F, class T, class H> PF_INLINE void encode_tile(const Tile<D, T>& tile, const H* entries, T* to, int64_t stride) {
  if (tile.has_runs()) interpolate_runs<D, F>(tile, entries, to, stride, [&](int i, Lane<T>* w) { tile.weights(i, w); });
  else interpolate_each<D, F>(tile, entries, to, stride);
}

// The same for features
template <int D, int F, class T, class H>
void encode(const T* points, const H* table, const Level* levels, int level_count, T* out, int64_t sample_stride, int64_t level_stride, int64_t n) {
  encode_tiles<D, F>(points, table, levels, level_count, out, sample_stride, level_stride, n,
                     [=](const Tile<D, T>& tile, int, int64_t, const H* entries, T* to) { encode_tile<D, F>(tile, entries, to, sample_stride); });
}

// Few samples, by the thread that calls: points (n, D) -> features level by level, (L, n, F), after enter(level)
template <int D, int F, class T, class H, class Enter>
void encode_few(const T* points, const H* table, const Level* levels, int level_count, T* features, int64_t n, Enter enter) {
  tiles_between<D>(points, levels, level_count, 0, n, [=](const Tile<D, T>& tile, int l, int64_t first) {
    encode_tile<D, F>(tile, table + levels[l].offset * F, features + (l * n + first) * F, F);
  }, [=](int l, int64_t, int64_t) { enter(l); });
}

// Features level by level, (L, stride, F), -> rows of L F. Within 64 samples, whose rows stay in the first-level cache.
template <int F, class T> PF_INLINE void join_levels(const T* by_level, int64_t stride, T* rows, int64_t n, int level_count) {
  for (int64_t begin = 0; begin < n; begin += 64)
    for (int l = 0; l < level_count; ++l)
      for (int64_t i = begin; i < (n < begin + 64 ? n : begin + 64); ++i)
        std::memcpy(rows + (i * level_count + l) * F, by_level + (l * stride + i) * F, F * sizeof(T));
}

template <int F, class H> PF_INLINE bool is_near(const H*, const Level* levels, int level_count) {
  return (levels[level_count - 1].offset + levels[level_count - 1].size) * F * int64_t(sizeof(H)) <= NEAR_TABLE;
}

// Rows of L F numbers by fill(first sample, count, out, sample_stride, level_stride). A table beyond the caches is met level by
// level: what is then put in rows costs less than the entries that would be fetched again.
template <int F, class T, class H, class Fill>
void fill_rows(const H* table, const Level* levels, int level_count, T* rows, int64_t n, Fill fill) {
  const int64_t row = int64_t(level_count) * F;
  if (is_near<F>(table, levels, level_count)) return fill(int64_t(0), n, rows, row, int64_t(F));
  static thread_local Scratch<T> scratch;
  const int64_t most = 2 * LEVELS_BLOCK, room = (n < most ? n : most) + PAD;
  scratch.resize(room * row);
  T* by_level = scratch.data();
  for (int64_t base = 0; base < n; base += most) {
    const int64_t count = n - base < most ? n - base : most;
    fill(base, count, by_level, int64_t(F), room * F);
    parallel_chunks(count, 64, [=](int64_t begin, int64_t end) {
      join_levels<F>(by_level + begin * F, room, rows + (base + begin) * row, end - begin, level_count);
    });
  }
}

// points (n, D) -> rows of L F features
template <int D, int F, class T, class H>
void encode_rows(const T* points, const H* table, const Level* levels, int level_count, T* rows, int64_t n) {
  fill_rows<F>(table, levels, level_count, rows, n, [=](int64_t base, int64_t count, T* out, int64_t sample_stride, int64_t level_stride) {
    encode<D, F>(points + base * D, table, levels, level_count, out, sample_stride, level_stride, count);
  });
}

// Rows of WIDTH numbers per (sample, level) -> level by level. Within 64 samples, so that rows stay in the first-level cache.
template <int WIDTH, class T> PF_INLINE void split_levels(const T* rows, T* levels, int64_t level_stride, int n, int level_count) {
  for (int l = 0; l < level_count; ++l)
    for (int i = 0; i < n; ++i) std::memcpy(levels + l * level_stride + i * WIDTH, rows + (int64_t(i) * level_count + l) * WIDTH, WIDTH * sizeof(T));
}

#endif

// The template arguments from numbers; in CUDA they are known, and features beyond four are done four by four.
#if PF_CUDA
template <class Call> PF_INLINE void dispatch(int, int, Call call) { call(Number<PF_DIMENSIONS>(), Number<PF_FEATURES < 4 ? PF_FEATURES : 4>()); }
#else
template <class Call> PF_INLINE void dispatch(int dimensions, int features, Call call) {
  const auto with = [&](auto d) {
    if (features == 1) call(d, Number<1>());
    if (features == 2) call(d, Number<2>());
    if (features == 4) call(d, Number<4>());
    if (features == 8) call(d, Number<8>());
  };
  if (dimensions == 2) with(Number<2>());
  if (dimensions == 3) with(Number<3>());
}
#endif

}  // namespace
}  // namespace polyfield
