// What blending splats into tiles takes, whatever a splat is: entries by tile, loops over their cells, and sums of gradients.
//
// In CUDA a block has a tile and a thread a pixel; entries come in batches to shared memory, and a warp looks only at those that
// meet its two cells. Moments are summed by shuffles over a warp, in order over the warps, and stored: no atomics.
#pragma once
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

#if PF_CUDA

constexpr int TOGETHER = 32, WARPS = PIXELS / GROUP;  // entries whose moments are summed together

// Entries in shared memory, and the next of them for as long as light gets anywhere. S: what is made of a row.
template <class T, class S> struct Batch {
  static constexpr int SIZE = 1024 / sizeof(T);
  S splats[SIZE];
  T values[SIZE][MOST];
  uint32_t cells[SIZE], live[WARPS];
  int32_t slots[SIZE];

  PF_INLINE void load(const Scene<T>& s, const Window& w, int64_t entry, int i) {
    const int32_t slot = int32_t(s.entries[entry]);
    const int64_t gaussian = s.slot_gaussian[slot];
    T row[ROW];
    rows_to_lanes(s.rows + ROW * gaussian, ROW, ROW, 1, row);
    splats[i] = S(row, w), cells[i] = uint32_t(s.entries[entry] >> 32), slots[i] = slot;
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

// Moments of TOGETHER entries, as each warp found them, and which it looked at.
template <class T> struct Parts {
  T of[WARPS][TOGETHER][ROW];
  uint32_t looked[WARPS];
};

// By all threads of a block: the moments of a batch's entries from `first` on, in order over the warps, to their slots.
template <class T, class S> PF_INLINE void store_parts(const Parts<T>& parts, const Batch<T, S>& batch, int first, int n, T* slots) {
  for (int j = int(threadIdx.x); j < TOGETHER * ROW; j += PIXELS) {
    const int e = j / ROW;
    if (first + e >= n) break;
    T sum(0);
    for (int k = 0; k < WARPS; ++k)
      if (parts.looked[k] >> e & 1) sum += parts.of[k][e][j % ROW];
    slots[ROW * int64_t(batch.slots[first + e]) + j % ROW] = sum;
  }
}

// The moments of entries that no light reaches.
template <class T> PF_INLINE void clear_slots(const Scene<T>& s, int64_t tile, int64_t stopped, T* slots) {
  for (int64_t j = ROW * stopped + int(threadIdx.x); j < ROW * s.tile_offsets[tile + 1]; j += PIXELS)
    slots[ROW * int64_t(int32_t(s.entries[j / ROW])) + j % ROW] = T(0);
}

#else

constexpr int AHEAD = 6;  // entries whose rows are fetched before they are needed

// f(slot, number of a Gaussian, its splat, cells) for a tile's entries until nothing is live.
template <class S, class T, class F>
PF_INLINE void for_entries(const Scene<T>& s, const Window& w, int64_t tile, const uint32_t& live, F f, const T* slots = nullptr) {
  const int64_t end = s.tile_offsets[tile + 1];
  for (int64_t e = s.tile_offsets[tile]; e < end && live; ++e) {
    if (e + AHEAD < end) {
      const int64_t ahead = int32_t(s.entries[e + AHEAD]);
      __builtin_prefetch(s.rows + ROW * int64_t(s.slot_gaussian[ahead]));
      if (slots) __builtin_prefetch(slots + ROW * ahead, 1);
    }
    const int64_t slot = int32_t(s.entries[e]), gaussian = s.slot_gaussian[slot];
    f(slot, gaussian, S(s.rows + ROW * gaussian, w), uint32_t(s.entries[e] >> 32) & live);
  }
}

template <class T> PF_INLINE uint32_t cells_inside(const Window& w) {
  uint32_t cells = 0;
  for (int k = 0; k < CELLS; ++k) cells |= uint32_t(k % CELL * CELL < w.columns && k / CELL * CELL < w.rows) << k;
  return cells;
}

// f(first of LANES pixels), whether any of them is open, for an entry's cells; cells where none is are no longer live.
template <class F> PF_INLINE void for_vectors(uint32_t cells, uint32_t& live, F f) {
  for (; cells; cells &= cells - 1) {
    const int cell = lowest(cells);
    bool alive = false;
    for (int v = 0; v < VECTORS; ++v) alive |= f(CELLS * cell + LANES * v);
    if (!alive) live &= ~(1u << cell);
  }
}

// The i-th of an image's tiles band by band, column by column: tiles one below the other share Gaussians and slots, which are
// then still in the cache.
struct TileOrder {
  int64_t tiles, columns, band;  // band: tiles of one
  TileOrder(int64_t tiles_, int width) : tiles(tiles_), columns(ceil_div(width, TILE)), band(columns * BAND) {}
  PF_INLINE int64_t operator()(int64_t i) const {
    const int64_t first = i / band * band, rows = (tiles - first < band ? tiles - first : band) / columns;
    return first + (i - first) % rows * columns + (i - first) / rows;
  }
};

// f(tile, the one after it or -1) for all tiles, whose bands' slots are cleared before.
template <class T, class F> PF_INLINE void for_bands(int64_t tiles, int width, T* slots, const int64_t* band_offsets, F f) {
  const TileOrder order(tiles, width);
  parallel_pieces(ceil_div(tiles, order.band), [=](int64_t b) {
    std::memset(slots + ROW * band_offsets[b], 0, ROW * (band_offsets[b + 1] - band_offsets[b]) * sizeof(T));
    const int64_t end = (b + 1) * order.band < tiles ? (b + 1) * order.band : tiles;
    for (int64_t i = b * order.band; i < end; ++i) f(order(i), i + 1 < end ? order(i + 1) : -1);
  });
}

#endif

// Sums over slots -> gradients to rows (added if `add`) or, in place of those to colour and depth, to other channels.
// gradient(row, moments, to): a row's.
template <class T, class F>
PF_INLINE void gather_slots(const T* rows, const Slots<T>& slots, Threads<> gaussians, T* grad_rows, int add, T* grad_channels, int64_t first, int64_t stride,
                            int n_channels, F gradient) {
  using R = Lane<T>;
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    Slots<T> blended = slots;
    blended.gather(begin, end);
    for (int64_t i = begin + lane_number(); i < end; i += GROUP) {
      const int n = int(end - i < LANES ? end - i : LANES);
      R row[ROW], moments[ROW], g[ROW], before[ROW];
      rows_to_lanes(rows + ROW * i, ROW, ROW, n, row);
      blended.load(i, n, moments);
      gradient(row, moments, g);
      const Mask<T> seen = row[EXTENT] > R(T(0));
      for (int k = 0; k < ROW; ++k) g[k] = select(seen, g[k], R(T(0)));
#pragma unroll
      for (int k = 0; k < MOST; ++k)
        if (grad_channels && k < n_channels) store_strided(grad_channels + first + stride * i + k, stride, g[COLOR + k], n);
      if (add) rows_to_lanes(grad_rows + ROW * i, ROW, ROW, n, before);
      for (int k = 0; k < ROW; ++k) {
        const bool others = grad_channels && k >= COLOR && k <= DEPTH;
        g[k] = (add ? before[k] : R(T(0))) + (others ? R(T(0)) : g[k]);
      }
      lanes_to_rows(grad_rows + ROW * i, ROW, ROW, n, g);
    }
  });
}

}  // namespace polyfield
