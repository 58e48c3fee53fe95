// Blending of sorted Gaussians into tiles, front to back (Kerbl et al., "3D Gaussian Splatting", 2023):
//
//   w_i = alpha_i T_i,   T_{i+1} = T_i (1 - alpha_i),   image = sum_i w_i c_i + T background,   alpha image = 1 - T.
//
// Backward runs front to back too, with what is left to come, L_i = g (image - sum_{j<=i} w_j c_j), g the image's gradient:
//   d loss / d alpha_i = T_i g c_i - L_i / (1 - alpha_i).
// The trick: pixels in lanes, Gaussians in the outer loop over a tile whose colours and transmittances stay in the
// first-level cache; of 16 cells only those that an ellipse meets and that are not yet opaque. What a Gaussian's gradient
// needs of a tile are moments of v = alpha d loss / d alpha: kept in registers over the tile, summed across lanes once.
// In CUDA a block has a tile and a thread a pixel; entries come in batches to shared memory, and a warp looks only at those that
// meet its two cells. Moments are summed by shuffles over a warp, in order over the warps, and stored: no atomics.
#include "op.h"
#include "splat_tile.h"

namespace polyfield {

// Per Gaussian its n channels at channels + stride * number; those that lack to N are zero.
template <class T> struct Channels {
  const T* channels;
  int64_t stride;
  int n;
};

template <class T> struct Scene {
  const T* rows;
  const int64_t *entries, *tile_offsets;
  const int32_t* slot_gaussian;
  int width, height;
  Channels<T> channels;
};

template <class T> struct Upstream {
  Planes<T> images, grad_images;  // what was drawn, over its background, and its gradient
  const T *alphas, *grad_alphas;
  T* slots;
};

// f(channels at a time, whether medians are wanted, whether the cutoff is smooth), as types
template <class T, class F> PF_INLINE void choose(int n, bool medians, bool smooth, F f) {
  if (std::is_same_v<T, double> && smooth) f(Number<4>(), Number<1>(), Number<std::is_same_v<T, double>>());
  else if (medians) f(Number<4>(), Number<1>(), Number<0>());
  else if (n <= 3) f(Number<3>(), Number<0>(), Number<0>());
  else f(Number<4>(), Number<0>(), Number<0>());
}

#if PF_CUDA

constexpr int TOGETHER = 32, WARPS = PIXELS / GROUP;  // entries whose moments are summed together

// Entries in shared memory, and the next of them for as long as light gets anywhere.
template <class T> struct Batch {
  static constexpr int SIZE = 1024 / sizeof(T);
  Splat<T> splats[SIZE];
  T conics[SIZE][3], values[SIZE][MOST], depths[SIZE];
  uint32_t cells[SIZE], live[WARPS];
  int32_t slots[SIZE];

  PF_INLINE void load(const Scene<T>& s, const Window& w, int64_t entry, int i) {
    const int32_t slot = int32_t(s.entries[entry]);
    const int64_t gaussian = s.slot_gaussian[slot];
    T row[ROW];
    rows_to_lanes(s.rows + ROW * gaussian, ROW, ROW, 1, row);
    splats[i] = Splat<T>(row, w), depths[i] = row[DEPTH], cells[i] = uint32_t(s.entries[entry] >> 32), slots[i] = slot;
    for (int k = 0; k < 3; ++k) conics[i][k] = row[CONIC + k];
    for (int k = 0; k < MOST; ++k) values[i][k] = k < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + k] : T(0);
  }
  // f(first, n, wanted) by all warps, for groups of TOGETHER of a batch's n entries: those of them that meet the warp's cells where there is light.
  // Returns where it stopped.
  template <class F> PF_INLINE int64_t for_groups(const Scene<T>& s, const Window& w, int64_t tile, const T& transmittance, F f) {
    const int thread = int(threadIdx.x), warp = thread / GROUP;
    const int64_t end = s.tile_offsets[tile + 1];
    int64_t begin = s.tile_offsets[tile];
    for (; begin < end; begin += SIZE) {
      const int n = end - begin < SIZE ? int(end - begin) : SIZE;
      __syncthreads();  // the last batch is done
      const bool alive = __any_sync(WARP, transmittance >= T(MIN_TRANSMITTANCE));
      if (lane_number() == 0) live[warp] = alive;
      if (thread < n) load(s, w, begin + thread, thread);
      __syncthreads();
      uint32_t any_live = 0;
      for (uint32_t one : live) any_live |= one;
      if (!any_live) break;
      for (int first = 0; first < n; first += TOGETHER) {
        const uint32_t light = __ballot_sync(WARP, transmittance >= T(MIN_TRANSMITTANCE));
        const uint32_t mine = (uint32_t((light & 0xffff) != 0) | uint32_t(light >> 16 != 0) << 1) << 2 * warp;
        const int i = first + lane_number();
        f(first, n, __ballot_sync(WARP, i < n && (cells[i] & mine)));
      }
    }
    return begin;
  }
};

// A pixel of a tile: which of the image it is (-1: none), and its centre.
template <class T> struct Pixel {
  int cell;
  T x, y;
  int64_t at;
  PF_INLINE explicit Pixel(const Window& w) {
    const int i = int(threadIdx.x);
    cell = i / CELLS, at = w.pixel(i);
    x = T(CELL * (cell % CELL) + i % CELL) + T(0.5), y = T(CELL * (cell / CELL) + i % CELLS / CELL) + T(0.5);
  }
  PF_INLINE T read(const Plane<T>& plane) const { return plane.image && at >= 0 ? plane.image[plane.offset + at * plane.stride] : T(0); }
};

template <class T, int N, bool MEDIAN, bool SMOOTH>
PF_INLINE void blend_tile(Batch<T>& batch, const Scene<T>& s, int64_t tile, const Planes<T>& images, const T* background, T* alphas, T* medians) {
  const Window w(tile, s.width, s.height);
  const Pixel<T> pixel(w);
  T transmittance = pixel.at >= 0 ? T(1) : T(0), image[N] = {}, median(0);
  batch.for_groups(s, w, tile, transmittance, [&](int first, int n, uint32_t wanted) {
    for (; wanted; wanted &= wanted - 1) {
      const int i = first + lowest(wanted);
      if (!(batch.cells[i] >> pixel.cell & 1)) continue;
      const Splat<T>& splat = batch.splats[i];
      T alpha, slope;
      bool open;
      const T before = transmittance, weight = take<SMOOTH>(splat, pixel.x - splat.x, pixel.y - splat.y, transmittance, open, alpha, slope);
      for (int c = 0; c < N; ++c) image[c] += weight * batch.values[i][c];
      if (MEDIAN && before > T(0.5) && transmittance <= T(0.5)) median = batch.depths[i];
    }
  });
  if (pixel.at < 0) return;
  for (int c = 0; c < N; ++c) {
    if (background && c < 3) image[c] += transmittance * background[c];
    const Plane<T>& to = images.of[c];
    if (to.image) to.image[to.offset + pixel.at * to.stride] = image[c];
  }
  if (alphas) alphas[pixel.at] = T(1) - transmittance;
  if (MEDIAN && medians) medians[pixel.at] = median;
}

// Moments of TOGETHER entries, as each warp found them, and which it looked at.
template <class T> struct Parts {
  T of[WARPS][TOGETHER][ROW];
  uint32_t looked[WARPS];
};

template <class T, int N, bool SMOOTH>
PF_INLINE void blend_tile_backward(Batch<T>& batch, Parts<T>& parts, const Scene<T>& s, int64_t tile, const Upstream<T>& up) {
  const Window w(tile, s.width, s.height);
  const Pixel<T> pixel(w);
  const int thread = int(threadIdx.x), warp = thread / GROUP, lane = lane_number();
  T transmittance(0), rest(0), grad[N];
  if (pixel.at >= 0) {
    transmittance = T(1);
    if (up.grad_alphas) rest = up.grad_alphas[pixel.at] * (up.alphas[pixel.at] - T(1));
  }
  for (int c = 0; c < N; ++c) {
    grad[c] = pixel.read(up.grad_images.of[c]);
    if (up.grad_images.of[c].image) rest += grad[c] * pixel.read(up.images.of[c]);
  }
  const int64_t end = s.tile_offsets[tile + 1];
  const int64_t stopped = batch.for_groups(s, w, tile, transmittance, [&](int first, int n, uint32_t wanted) {
    for (uint32_t left = wanted; left; left &= left - 1) {
      const int e = lowest(left), i = first + e;
      const Splat<T>& splat = batch.splats[i];
      const T* conic = batch.conics[i];
      Moments<T, N> moments;
      if (batch.cells[i] >> pixel.cell & 1)
        moments.template add<SMOOTH>(splat, conic[0], conic[1], conic[2], pixel.x - splat.x, pixel.y - splat.y, batch.values[i], grad, transmittance, rest);
      T m[ROW];
      moments.list(m);
      const T sum = lane_sums<CHANNEL + N>(m);
      if (lane < ROW) parts.of[warp][e][lane] = sum;
    }
    if (lane == 0) parts.looked[warp] = wanted;
    __syncthreads();
    for (int j = thread; j < TOGETHER * ROW; j += PIXELS) {
      const int e = j / ROW;
      if (first + e >= n) break;
      T sum(0);
      for (int k = 0; k < WARPS; ++k)
        if (parts.looked[k] >> e & 1) sum += parts.of[k][e][j % ROW];
      up.slots[ROW * int64_t(batch.slots[first + e]) + j % ROW] = sum;
    }
    __syncthreads();
  });
  for (int64_t j = ROW * stopped + thread; j < ROW * end; j += PIXELS) up.slots[ROW * int64_t(int32_t(s.entries[j / ROW])) + j % ROW] = T(0);
}

template <class T>
void splat_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width, int height,
                 const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas, T* medians, int smooth) {
  PF_SHARED(Batch<T>, batch, [1]);
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  for_each(tiles, [&](int64_t tile) {
    choose<T>(n, medians, smooth, [&](auto N, auto MEDIAN, auto SMOOTH) {
      blend_tile<T, decltype(N)::value, decltype(MEDIAN)::value, decltype(SMOOTH)::value>(batch[0], s, tile, images.value, background, alphas, medians);
    });
  });
}

template <class T>
void splat_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width,
                          int height, const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images,
                          const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, T* slots, const int64_t*, int smooth) {
  PF_SHARED(Batch<T>, batch, [1]);
  PF_SHARED(Parts<T>, parts, [1]);
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const Upstream<T> up{images.value, grad_images.value, alphas, grad_alphas, slots};
  for_each(tiles, [&](int64_t tile) {
    choose<T>(n, false, smooth, [&](auto N, auto, auto SMOOTH) {
      blend_tile_backward<T, decltype(N)::value, decltype(SMOOTH)::value>(batch[0], parts[0], s, tile, up);
    });
  });
}

#else

constexpr int AHEAD = 6;  // entries whose rows are fetched before they are needed

// f(slot, number of a Gaussian, its splat, cells) for a tile's entries until nothing is live.
template <class T, class F> PF_INLINE void for_entries(const Scene<T>& s, const Window& w, int64_t tile, const uint32_t& live, F f) {
  const int64_t end = s.tile_offsets[tile + 1];
  for (int64_t e = s.tile_offsets[tile]; e < end && live; ++e) {
    if (e + AHEAD < end) __builtin_prefetch(s.rows + ROW * int64_t(s.slot_gaussian[int32_t(s.entries[e + AHEAD])]));
    const int64_t slot = int32_t(s.entries[e]), gaussian = s.slot_gaussian[slot];
    f(slot, gaussian, Splat<T>(s.rows + ROW * gaussian, w), uint32_t(s.entries[e] >> 32) & live);
  }
}

template <class T> PF_INLINE uint32_t cells_inside(const Window& w) {
  uint32_t cells = 0;
  for (int k = 0; k < CELLS; ++k) cells |= uint32_t(k % CELL * CELL < w.columns && k / CELL * CELL < w.rows) << k;
  return cells;
}

template <class T, int N, bool MEDIAN, bool SMOOTH>
void blend_tile(const Scene<T>& s, int64_t tile, const Planes<T>& images, const T* background, T* alphas, T* medians) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  alignas(64) T transmittance[PIXELS], image[N][PIXELS], median[MEDIAN ? PIXELS : 1];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1);
  for (int c = 0; c < N; ++c)
    for (int i = 0; i < PIXELS; ++i) image[c][i] = T(0);
  if (MEDIAN)
    for (int i = 0; i < PIXELS; ++i) median[i] = T(0);
  uint32_t live = cells_inside<T>(w);
  for_entries(s, w, tile, live, [&](int64_t, int64_t gaussian, const Splat<T>& splat, uint32_t cells) {
    R value[N];
    for (int c = 0; c < N; ++c) value[c] = R(c < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + c] : T(0));
    for (; cells; cells &= cells - 1) {
      const int cell = lowest(cells);
      bool alive = false;
      for (int v = 0; v < VECTORS; ++v) {
        const int i = CELLS * cell + LANES * v;
        R alpha, slope, after = load(transmittance + i);
        Mask<T> open;
        const R before = after, weight = take<SMOOTH>(splat, load(at.x + i) - R(splat.x), load(at.y + i) - R(splat.y), after, open, alpha, slope);
        for (int c = 0; c < N; ++c) store(image[c] + i, load(image[c] + i) + weight * value[c]);
        store(transmittance + i, after);
        if (MEDIAN) {
          const R depth(s.rows[ROW * gaussian + DEPTH]);
          store(median + i, select((before > R(T(0.5))) & (after <= R(T(0.5))), depth, load(median + i)));
        }
        alive |= any(open);
      }
      if (!alive) live &= ~(1u << cell);
    }
  });
  for (int c = 0; c < N; ++c) {
    if (background && c < 3)
      for (int i = 0; i < PIXELS; ++i) image[c][i] += transmittance[i] * background[c];
    write_plane(w, image[c], images.of[c]);
  }
  if (alphas) {
    for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1) - transmittance[i];
    write_plane(w, transmittance, Plane<T>{alphas, 0, 1});
  }
  if (MEDIAN) write_plane(w, median, Plane<T>{medians, 0, 1});
}

template <class T>
void splat_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width, int height,
                 const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas, T* medians, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  choose<T>(n, medians, smooth, [&](auto N, auto MEDIAN, auto SMOOTH) {
    for_each(tiles, [&](int64_t tile) {
      blend_tile<T, decltype(N)::value, decltype(MEDIAN)::value, decltype(SMOOTH)::value>(s, tile, images.value, background, alphas, medians);
    });
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------
template <class T, int N, bool SMOOTH> void blend_tile_backward(const Scene<T>& s, int64_t tile, const Upstream<T>& up) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  alignas(64) T transmittance[PIXELS], rest[PIXELS], grad[N][PIXELS], scratch[PIXELS];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1), rest[i] = T(0);
  if (up.grad_alphas) {  // alpha grows by T / (1 - alpha_i): as if an image of -T were left to come
    w.for_pixels([&](int i, int64_t p) { rest[i] = up.grad_alphas[p] * (up.alphas[p] - T(1)); });
  }
  for (int c = 0; c < N; ++c) {
    read_plane(w, up.grad_images.of[c], grad[c]);
    if (!up.grad_images.of[c].image) continue;
    read_plane(w, up.images.of[c], scratch);
    for (int i = 0; i < PIXELS; ++i) rest[i] += grad[c][i] * scratch[i];
  }
  uint32_t live = cells_inside<T>(w);
  for_entries(s, w, tile, live, [&](int64_t slot, int64_t gaussian, const Splat<T>& splat, uint32_t cells) {
    if (!cells) return;
    const T* row = s.rows + ROW * gaussian;
    const R a(row[CONIC]), b(row[CONIC + 1]), c(row[CONIC + 2]);
    R value[N];
    for (int k = 0; k < N; ++k) value[k] = R(k < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + k] : T(0));
    Moments<T, N> moments;
    for (; cells; cells &= cells - 1) {
      const int cell = lowest(cells);
      bool alive = false;
      for (int v = 0; v < VECTORS; ++v) {
        const int i = CELLS * cell + LANES * v;
        R g[N], light = load(transmittance + i), left = load(rest + i);
        for (int k = 0; k < N; ++k) g[k] = load(grad[k] + i);
        const Mask<T> open =
            moments.template add<SMOOTH>(splat, a, b, c, load(at.x + i) - R(splat.x), load(at.y + i) - R(splat.y), value, g, light, left);
        store(transmittance + i, light), store(rest + i, left);
        alive |= any(open);
      }
      if (!alive) live &= ~(1u << cell);
    }
    R m[ROW];
    moments.list(m);
    add_sums(up.slots + ROW * slot, m);
  });
}

template <class T>
void splat_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width,
                          int height, const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images,
                          const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, T* slots, const int64_t* band_offsets, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const Upstream<T> up{images.value, grad_images.value, alphas, grad_alphas, slots};
  const int64_t band = ceil_div(width, TILE) * BAND;
  choose<T>(n, false, smooth, [&](auto N, auto, auto SMOOTH) {
    parallel_pieces(ceil_div(tiles, band), [&](int64_t b) {
      std::memset(slots + ROW * band_offsets[b], 0, ROW * (band_offsets[b + 1] - band_offsets[b]) * sizeof(T));
      for (int64_t tile = b * band; tile < tiles && tile < (b + 1) * band; ++tile) blend_tile_backward<T, decltype(N)::value, decltype(SMOOTH)::value>(s, tile, up);
    });
  });
}

#endif

// Sums over slots -> gradients to rows (added if `add`) and to channels beyond colour and depth.
template <class T>
void splat_gather(const T* rows, const T* slots, const int32_t* slot_gaussian, const int64_t* slot_offsets, int bands, Threads<> gaussians, T* grad_rows,
                  int add, T* grad_channels, int64_t first, int64_t stride, int n_channels) {
  using R = Lane<T>;
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    Slots<T> blended{slots, slot_gaussian, slot_offsets, bands};
    blended.gather(begin, end);
    const int own = grad_channels ? COLOR : DEPTH + 1;
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      R row[ROW], moments[ROW], g[ROW], before[ROW];
      rows_to_lanes(rows + ROW * i, ROW, ROW, n, row);
      blended.load(i, n, moments);
      row_gradient(row[CONIC], row[CONIC + 1], row[CONIC + 2], row[OPACITY], moments, g);
      const Mask<T> seen = row[EXTENT] > R(T(0));
      for (int k = 0; k <= DEPTH; ++k) g[k] = select(seen, g[k], R(T(0)));
#pragma unroll
      for (int k = 0; k < MOST; ++k)
        if (grad_channels && k < n_channels) store_strided(grad_channels + first + stride * i + k, stride, g[COLOR + k], n);
      if (add) rows_to_lanes(grad_rows + ROW * i, ROW, ROW, n, before);
      for (int k = 0; k < ROW; ++k) g[k] = (add ? before[k] : R(T(0))) + (k < own ? g[k] : R(T(0)));
      lanes_to_rows(grad_rows + ROW * i, ROW, ROW, n, g);
    }
  });
}

POLYFIELD_OP(splat_blend_f32, splat_blend<float>)
POLYFIELD_OP(splat_blend_f64, splat_blend<double>)
POLYFIELD_OP(splat_blend_backward_f32, splat_blend_backward<float>)
POLYFIELD_OP(splat_blend_backward_f64, splat_blend_backward<double>)
POLYFIELD_OP(splat_gather_f32, splat_gather<float>)
POLYFIELD_OP(splat_gather_f64, splat_gather<double>)

}  // namespace polyfield
