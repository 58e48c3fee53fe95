// Multiresolution hash encoding (Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, equations 1 to 4):
// points (N, D) in [0, 1]^D -> features (N, L F); level l interpolates the 2^D entries around x * resolution[l] linearly.
//
// include/hash_tile.h reads the table, hash_gradient.cu differentiates by the points; here is the table's gradient too. On the
// CPU each level has one owner: no atomics, no reduction, the same bits for any number of threads. In CUDA a thread works on one point at
// one level; neighbours on a ray that share a cell are summed up within the warp before one of them adds to the table.
#include "hash_tile.h"
#include "lane_pack.h"
#include "op.h"
#if !PF_CUDA
#include "scratch.h"
#endif

namespace polyfield {
namespace {

// ---- per item: the same on both machines ------------------------------------------------------------------------------

// v[0] -> each corner's share of it
template <int D, class V, class T> PF_INLINE void share_out(V* v, const T* fraction) {
  for (int d = D - 1; d >= 0; --d)
    for (int k = (1 << (D - 1 - d)) - 1; k >= 0; --k) {
      const V above = v[k];
      v[2 * k + 1] = fraction[d] * above;
      v[2 * k] = above - v[2 * k + 1];
    }
}

// Corner gradients (2^D) from that of the features, v[0], and the Jacobian's, (F, D)
template <int D, int F, class T> PF_INLINE void share_out_jacobian(Vec<T, F>* v, const T* fraction, const T* slope, const T* jacobian) {
  Vec<T, F> j[D][1 << D];
  for (int d = 0; d < D; ++d)
    for (int f = 0; f < F; ++f) j[d][0][f] = slope[d] * jacobian[f * D + d];
  for (int d = D - 1; d >= 0; --d) {
    const T f = fraction[d];
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
}

#if PF_CUDA
template <int D, int W, class T, class H>
PF_INLINE void encode_item(const T* point, const H* table, const Level& level, T* features) {
  const Place<D, T> at = place<D>(level, point);
  const H* entries = table + level.offset * WIDTH;
  for (int w = 0; w < WIDTH; w += W) {
    Vec<T, W> v[1 << D];
    corner_values<D, W>(at, entries, WIDTH, w, v);
    interpolate<D>(v, at.fraction);
    write(features + w, v[0]);
  }
}

template <class T, int W> PF_INLINE void add_atomically(T* p, const Vec<T, W>& v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<T, float> && W == 2)
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(v.x[0]), "f"(v.x[1]) : "memory");
  else if constexpr (std::is_same_v<T, float> && W == 4)
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x[0]), "f"(v.x[1]), "f"(v.x[2]), "f"(v.x[3]) : "memory");
  else
#endif
    for (int f = 0; f < W; ++f) atomicAdd(p + f, v.x[f]);
}

// All lanes of a warp: consecutive points at one level; those with `active` false have nothing to add.
// share(at, w, v): the corners' gradients of features w to w + W.
template <int D, int W, class T, class Share>
PF_INLINE void scatter_item(const T* point, bool active, const Level& level, T* grad_table, Share share) {
  const int lane = lane_number();
  const Place<D, T> at = place<D>(level, point);
  T* entries = grad_table + level.offset * WIDTH;
  // Runs: lanes in the cell of the lane before, at all corners, for a hash may collide in one.
  bool same = lane > 0;
  for (int c = 0; c < 1 << D; ++c) same = (__shfl_up_sync(WARP, at.index[c], 1) == at.index[c]) && same;
  const uint32_t starts = __ballot_sync(WARP, !same);
  const uint32_t behind = lane == 31 ? 0u : starts >> (lane + 1);
  const int last = behind ? lane + __ffs(int(behind)) - 1 : 31;  // of this lane's run
  const bool together = __popc(starts) * 3 < 32;
  for (int w = 0; w < WIDTH; w += W) {
    Vec<T, W> v[1 << D] = {};
    if (active) share(at, w, v);
    if (together)
#pragma unroll
      for (int step = 1; step < 32; step *= 2)
#pragma unroll
        for (int c = 0; c < 1 << D; ++c)
#pragma unroll
          for (int f = 0; f < W; ++f) {
            const T other = __shfl_down_sync(WARP, v[c].x[f], step);
            if (lane + step <= last) v[c].x[f] += other;
          }
    if (active && (!together || !same))
      for (int c = 0; c < 1 << D; ++c) add_atomically(entries + WIDTH * int64_t(at.index[c]) + w, v[c]);
  }
}

#else

// ---- gradient to the table --------------------------------------------------------------------------------------------

// Each sample by itself: its gradient is shared out axis by axis.
template <int D, int F, class T> PF_INLINE void scatter_each(const Tile<D, T>& tile, const T* gradient, T* table) {
  for (int i = 0; i < tile.count; ++i) {
    Vec<T, F> v[1 << D];
    v[0] = read<Vec<T, F>>(gradient + i * F);
    T fraction[D];
    for (int d = 0; d < D; ++d) fraction[d] = tile.fraction[d][i];
    share_out<D>(v, fraction);
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
    Vec<T, F> v[1 << D];
    T fraction[D], slope[D];
    for (int d = 0; d < D; ++d) fraction[d] = tile.fraction[d][i];
    slopes<D>(points + i * D, resolution, slope);
    v[0] = read<Vec<T, F>>(gradient + i * F);
    share_out_jacobian<D, F>(v, fraction, slope, jacobian + i * F * D);
    for (int c = 0; c < 1 << D; ++c) {
      T* p = table + F * int64_t(tile.index[c][i]);
      write(p, read<Vec<T, F>>(p) + v[c]);
    }
  }
}

// Of the derivatives along directions (in cells, see Tile::along), whose gradients are F numbers per sample. Runs are summed up
// before they are added.
template <int D, int F, class T>
PF_INLINE void scatter_along(const Tile<D, T>& tile, const T (*along)[HASH_TILE + PAD], const T* gradient, T* table) {
  alignas(64) T change[1 << D][HASH_TILE + PAD];
  for (int i = 0; i < tile.count; i += LANES) {
    Lane<T> w[1 << D], c[1 << D];
    tile.weights_along(i, along, w, c);
    for (int k = 0; k < 1 << D; ++k) store(change[k] + i, c[k]);
  }
  for (int i = 0; i < tile.count;) {
    const int first = i;
    Vec<T, F> sum[1 << D] = {};
    do {
      const Vec<T, F> g = read<Vec<T, F>>(gradient + i * F);
      for (int c = 0; c < 1 << D; ++c) sum[c] += change[c][i] * g;
      ++i;
    } while (i < tile.count && !(tile.starts[i / LANES] >> (i % LANES) & 1));
    for (int c = 0; c < 1 << D; ++c) {
      T* p = table + F * int64_t(tile.index[c][first]);
      write(p, read<Vec<T, F>>(p) + sum[c]);
    }
  }
}

constexpr int64_t CHUNK = 65536;  // samples per pass: bounds the scratch (128 bytes each at 16 levels of 2)

// Adds to the table, each level by one owner: scatter(tile, level, first sample, its entries) for every tile of n samples, whose
// coordinates lie axis by axis in rows of `stride`.
template <int D, int F, class T, class Scatter>
void scatter_levels(const T* columns, const Level* levels, int level_count, int64_t stride, T* grad_table, int64_t n, Scatter scatter) {
  parallel_pieces(level_count, [=](int64_t piece) {
    const int64_t l = level_count - 1 - piece;  // the finest, which cost most, first
    T* table = grad_table + levels[l].offset * F;
    warm<D>(table, levels[l].size * F, n, 0, n);
    Tile<D, T> tile;
    for (int64_t begin = 0; begin < n; begin += HASH_TILE) {
      tile.locate_level(levels[l], columns + begin, stride, int(n - begin < HASH_TILE ? n - begin : HASH_TILE));
      scatter(tile, l, begin, table);
    }
  });
}

template <int D, int F, class T> PF_INLINE void scatter(const Tile<D, T>& tile, const T* gradient, T* table) {
  if (tile.has_runs()) scatter_runs<D, F>(tile, gradient, table);
  else scatter_each<D, F>(tile, gradient, table);
}

// With directions (N, D), grad_features are the gradients of the derivatives along them.
template <int D, int F, bool JACOBIAN, class T>
void backward_table(const T* points, const T* directions, const Level* levels, const T* grad_features, const T* grad_jacobian, T* grad_table, int64_t n,
                    int level_count) {
  static thread_local Scratch<T> scratch;
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
    scatter_levels<D, F>(columns, levels, level_count, room, grad_table, count, [=](const Tile<D, T>& tile, int64_t l, int64_t begin, T* table) {
      const T *gradient = by_level + (l * room + begin) * F, *from = points + (base + begin) * D;
      if (JACOBIAN) {
        scatter_with_jacobian<D, F>(tile, from, levels[l].resolution, gradient, jacobian_by_level + (l * room + begin) * F * D, table);
      } else if (directions) {
        alignas(64) T along[D][HASH_TILE + PAD];
        tile.along(from, directions + (base + begin) * D, levels[l].resolution, along);
        scatter_along<D, F>(tile, along, gradient, table);
      } else {
        scatter<D, F>(tile, gradient, table);
      }
    });
  }
}

// The same from gradients that lie level by level already: (L, n, F)
template <int D, int F, class T>
void backward_table_by_level(const T* points, const Level* levels, const T* grad_features, T* grad_table, int64_t n, int level_count) {
  static thread_local Scratch<T> scratch;
  const int64_t stride = ceil_div(n, 64) * 64 + PAD;
  scratch.resize(stride * D);
  T* columns = scratch.data();
  parallel_chunks(n, 64, [=](int64_t begin, int64_t end) { split_axes<D>(points + begin * D, columns + begin, stride, end - begin); });
  scatter_levels<D, F>(columns, levels, level_count, stride, grad_table, n, [=](const Tile<D, T>& tile, int64_t l, int64_t begin, T* table) {
    scatter<D, F>(tile, grad_features + (l * n + begin) * F, table);
  });
}

#endif

}  // namespace

// ---- entry points ------------------------------------------------------------------------------------------------------

template <class T, class H>
void hash_encode(const T* points, const H* table, const int64_t* levels_, T* features, Threads<> items, int64_t n, int dimensions, int level_count, int width) {
  const Level* levels = (const Level*)levels_;
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
#if PF_CUDA
    for_parts(items, n, [=](int64_t i, int part) {
      if (i < 0) return;
      for (int l = part * SECTOR; l < (part + 1) * SECTOR && l < level_count; ++l)
        encode_item<D, F>(points + i * D, table, levels[l], features + (i * level_count + l) * WIDTH);
    });
#else
    encode_rows<D, F>(points, table, levels, level_count, features, n);
#endif
  });
}

template <class T>
void hash_encode_backward_table(const T* points, const int64_t* levels_, const T* grad_features, const T* grad_jacobian, T* grad_table, Threads<> items,
                                int64_t n, int dimensions, int level_count, int width) {
  const Level* levels = (const Level*)levels_;
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
#if PF_CUDA
    for_parts(items, n, [=](int64_t i, int l) {
      const int64_t point = i < 0 ? n - 1 : i, row = (point * level_count + l) * WIDTH;
      const T* jacobian = grad_jacobian ? grad_jacobian + row * D : nullptr;
      T slope[D];
      if (jacobian) slopes<D>(points + point * D, levels[l].resolution, slope);
      scatter_item<D, F>(points + point * D, i >= 0, levels[l], grad_table, [=](const Place<D, T>& at, int w, Vec<T, F>* v) {
        v[0] = fetch<F>(grad_features + row + w);
        if (jacobian) share_out_jacobian<D, F>(v, at.fraction, slope, jacobian + w * D);
        else share_out<D>(v, at.fraction);
      });
    });
#else
    if (grad_jacobian) backward_table<D, F, true>(points, (const T*)nullptr, levels, grad_features, grad_jacobian, grad_table, n, level_count);
    else backward_table<D, F, false>(points, (const T*)nullptr, levels, grad_features, grad_jacobian, grad_table, n, level_count);
#endif
  });
}

// The table's gradient from that of the derivatives along directions (N, D), grad_derivatives (N, L F)
template <class T>
void hash_encode_backward_along(const T* points, const T* directions, const int64_t* levels_, const T* grad_derivatives, T* grad_table, Threads<> items,
                                int64_t n, int dimensions, int level_count, int width) {
  const Level* levels = (const Level*)levels_;
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
#if PF_CUDA
    for_parts(items, n, [=](int64_t i, int l) {
      const int64_t point = i < 0 ? n - 1 : i;
      T along[D];
      cells_along<D>(points + point * D, directions + point * D, levels[l].resolution, along);
      scatter_item<D, F>(points + point * D, i >= 0, levels[l], grad_table, [=](const Place<D, T>& at, int w, Vec<T, F>* v) {
        const Vec<T, F> g = fetch<F>(grad_derivatives + (point * level_count + l) * WIDTH + w);
        T weight[1 << D], change[1 << D];
        weights_along<D>(at.fraction, along, weight, change);
        for (int c = 0; c < 1 << D; ++c) v[c] = change[c] * g;
      });
    });
#else
    backward_table<D, F, false>(points, directions, levels, grad_derivatives, (const T*)nullptr, grad_table, n, level_count);
#endif
  });
}

POLYFIELD_OP(hash_encode_f32, hash_encode<float, float>)
POLYFIELD_OP(hash_encode_f64, hash_encode<double, double>)
POLYFIELD_OP(hash_encode_bf16, hash_encode<float, BFloat16>)
POLYFIELD_OP(hash_encode_f16, hash_encode<float, Float16>)
POLYFIELD_OP(hash_encode_backward_table_f32, hash_encode_backward_table<float>)
POLYFIELD_OP(hash_encode_backward_table_f64, hash_encode_backward_table<double>)
POLYFIELD_OP(hash_encode_backward_along_f32, hash_encode_backward_along<float>)
POLYFIELD_OP(hash_encode_backward_along_f64, hash_encode_backward_along<double>)

#if !PF_CUDA

// Gradients that lie level by level already, (L, n, F), as the radiance kernel leaves them
template <class T>
void hash_encode_backward_levels(const T* points, const int64_t* levels, const T* grad_features, T* grad_table, Threads<>, int64_t n,
                                 int dimensions, int level_count, int width) {
  dispatch(dimensions, width, [=](auto dimensions_, auto features_) {
    constexpr int D = decltype(dimensions_)::value, F = decltype(features_)::value;
    backward_table_by_level<D, F>(points, (const Level*)levels, grad_features, grad_table, n, level_count);
  });
}
POLYFIELD_OP(hash_encode_backward_levels_f32, hash_encode_backward_levels<float>)
POLYFIELD_OP(hash_encode_backward_levels_f64, hash_encode_backward_levels<double>)

#endif

}  // namespace polyfield
