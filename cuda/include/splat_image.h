// Where tiles are read from and written to: planes of an image, number by number or, where three of them are the colours of
// one image, side by side in memory, four pixels at a time.
//
// The trick: pixels of a cell's row are a run in both, so colours are woven by shuffles of four; and a tile's rows are asked for
// before the tile is worked on. Of 50,000 Gaussians at 800 x 800, 40 % of drawing went to stores of single numbers.
#pragma once
#include "lane_rows.h"
#include "splat_row.h"

namespace polyfield {

constexpr int PIXELS = TILE * TILE, CELLS = CELL * CELL;
constexpr int MOST = 4;  // channels that are blended at a time

// An image's channel: where it is read or written, pixel (x, y) at offset + (y width + x) stride. No image: reads as zero.
template <class T> struct Plane {
  T* image;
  int64_t offset, stride;
};
template <class T> struct Planes { Plane<T> of[MOST]; };

struct Window {  // of a tile
  int x0, y0, columns, rows, width;
  Window(int64_t tile, int width_, int height) : width(width_) {
    const int tiles_x = (width + TILE - 1) / TILE;
    x0 = int(tile % tiles_x) * TILE, y0 = int(tile / tiles_x) * TILE;
    columns = width - x0 < TILE ? width - x0 : TILE;
    rows = height - y0 < TILE ? height - y0 : TILE;
  }
#if PF_CUDA
  // Of the image, where pixel i of the tile is; -1: outside
  PF_INLINE int64_t pixel(int i) const {
    const int cell = i / CELLS, x = CELL * (cell % CELL) + i % CELL, y = CELL * (cell / CELL) + i % CELLS / CELL;
    return x < columns && y < rows ? int64_t(y0 + y) * width + x0 + x : -1;
  }
#else
  // f(first pixel of the tile, of the image, how many) for the up to CELL pixels that lie side by side in both
  template <class F> PF_INLINE void for_runs(F f) const {
    for (int y = 0; y < rows; ++y) {
      const int64_t at = int64_t(y0 + y) * width + x0;
      const int i = CELLS * CELL * (y / CELL) + CELL * (y % CELL);
      for (int x = 0; x < columns; x += CELL) f(i + CELL * x, at + x, columns - x < CELL ? columns - x : CELL);
    }
  }
  // f(pixel of the tile, pixel of the image)
  template <class F> PF_INLINE void for_pixels(F f) const {
    for_runs([&](int i, int64_t at, int n) {
      if (n == CELL)
        for (int j = 0; j < CELL; ++j) f(i + j, at + j);
      else
        for (int j = 0; j < n; ++j) f(i + j, at + j);
    });
  }
#endif
};

#if !PF_CUDA
// Four pixels of a plane.
template <class T> struct Four {
  using V __attribute__((vector_size(4 * sizeof(T)))) = T;
  static PF_INLINE V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static PF_INLINE void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
};
// Those numbers of a and, from 4 on, of b.
template <int I, int J, int K, int L, class V> PF_INLINE V pick(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I, J, K, L);
#else
  return __builtin_shuffle(a, b, decltype(a < b){I, J, K, L});
#endif
}

// Whether planes hold the colours of one image, each pixel's side by side.
template <class T> PF_INLINE bool woven(const Plane<T>* planes) {
  for (int c = 0; c < 3; ++c)
    if (!planes[c].image || planes[c].image != planes[0].image || planes[c].stride != 3 || planes[c].offset != c) return false;
  return true;
}

// Asks for what a tile reads or writes of n planes.
template <bool WRITE, class T> PF_INLINE void fetch_planes(const Window& w, const Plane<T>* planes, int n) {
  constexpr int LINE = 64 / sizeof(T);
  for (int c = 0; c < n; ++c) {
    const Plane<T>& plane = planes[c];
    if (!plane.image || (c > 0 && plane.image == planes[c - 1].image)) continue;
    for (int y = 0; y < w.rows; ++y) {
      const T* row = plane.image + (int64_t(w.y0 + y) * w.width + w.x0) * plane.stride;
      for (int64_t k = 0; k < w.columns * plane.stride; k += LINE) __builtin_prefetch(row + k, WRITE);
    }
  }
}

template <class T> PF_INLINE void write_plane(const Window& w, const T* from, const Plane<T>& to) {
  if (to.image) w.for_pixels([&](int i, int64_t at) { to.image[to.offset + at * to.stride] = from[i]; });
}
// A tile's N planes.
template <int N, class T> PF_INLINE void write_planes(const Window& w, const T (*from)[PIXELS], const Planes<T>& to) {
  int c = 0;
  if (N >= 3 && woven(to.of)) {
    c = 3;
    w.for_runs([&](int i, int64_t at, int n) {
      T* pixels = to.of[0].image + 3 * at;
      if (n < CELL) {
        for (int j = 0; j < 3 * n; ++j) pixels[j] = from[j % 3][i + j / 3];
        return;
      }
      using F = Four<T>;
      const auto r = F::load(from[0] + i), g = F::load(from[1] + i), b = F::load(from[2] + i);
      const auto low = pick<0, 4, 1, 5>(r, g), high = pick<2, 6, 3, 7>(r, g);
      F::store(pixels, pick<0, 1, 4, 2>(low, b));
      F::store(pixels + 4, pick<0, 1, 4, 5>(pick<3, 5, 3, 5>(low, b), high));
      F::store(pixels + 8, pick<6, 2, 3, 7>(high, b));
    });
  }
  for (; c < N; ++c) write_plane(w, from[c], to.of[c]);
}

template <class T> PF_INLINE void read_plane(const Window& w, const Plane<T>& from, T* to) {
  for (int i = 0; i < PIXELS; ++i) to[i] = T(0);
  if (from.image) w.for_pixels([&](int i, int64_t at) { to[i] = from.image[from.offset + at * from.stride]; });
}
// A tile's N planes; what lies outside the image, and planes without one, reads as zero.
template <int N, class T> PF_INLINE void read_planes(const Window& w, const Planes<T>& from, T (*to)[PIXELS]) {
  int c = 0;
  if (N >= 3 && woven(from.of)) {
    c = 3;
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < PIXELS; ++i) to[k][i] = T(0);
    w.for_runs([&](int i, int64_t at, int n) {
      const T* pixels = from.of[0].image + 3 * at;
      if (n < CELL) {
        for (int j = 0; j < 3 * n; ++j) to[j % 3][i + j / 3] = pixels[j];
        return;
      }
      using F = Four<T>;
      const auto x = F::load(pixels), y = F::load(pixels + 4), z = F::load(pixels + 8);
      F::store(to[0] + i, pick<0, 1, 2, 5>(pick<0, 3, 6, 6>(x, y), z));
      F::store(to[1] + i, pick<0, 1, 2, 6>(pick<1, 4, 7, 7>(x, y), z));
      F::store(to[2] + i, pick<0, 1, 4, 7>(pick<2, 5, 5, 5>(x, y), z));
    });
  }
  for (; c < N; ++c) read_plane(w, from.of[c], to[c]);
}

// Gradients to a tile's N planes, and rest += gradient image, what of it is left to come. What the next tile (-1: none) reads is
// asked for.
template <int N, class T>
PF_INLINE void read_gradients(const Window& w, int64_t next, int height, const Planes<T>& grads, const Planes<T>& images, T (*grad)[PIXELS], T* rest) {
  alignas(64) T drawn[N][PIXELS];
  read_planes<N>(w, grads, grad), read_planes<N>(w, images, drawn);
  for (int c = 0; c < N; ++c)
    for (int i = 0; grads.of[c].image && i < PIXELS; ++i) rest[i] += grad[c][i] * drawn[c][i];
  if (next < 0) return;
  const Window after(next, w.width, height);
  fetch_planes<false>(after, grads.of, N), fetch_planes<false>(after, images.of, N);
}
#endif

}  // namespace polyfield
