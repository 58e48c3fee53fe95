// A projected Gaussian as one row of 16 numbers (a cache line of floats), and what of the image its ellipse can meet.
//
// Image: tiles of 16 x 16 pixels, each of 4 x 4 blocks of 4 x 4 pixels. Gradients are summed in slots, so that sums depend on
// nothing but the image's size. On the CPU a slot is a Gaussian's in a band of tile rows: a band is worked on by one thread, in
// order, and its slots lie side by side, so that they stay in that thread's cache. In CUDA it is a Gaussian's in a tile, which
// one block writes once, without atomics; a Gaussian's slots lie side by side.
#pragma once
#include "lane_math.h"
#include "lane_rows.h"
#if !PF_CUDA
#include <vector>
#endif

namespace polyfield {

// Columns of a row; the gradient to a row has the same, with the sums of absolute gradients to the mean at EXTENT.
enum Column { MEAN = 0, CONIC = 2, OPACITY = 5, EXTENT = 6, COLOR = 8, DEPTH = 11, ROW = 16 };
// What blending sums for a row's gradient: v = d loss / d log alpha of a pixel, d its distance from the mean.
enum Moment { V = 0, V_X, V_Y, V_XX, V_XY, V_YY, ABS_X, ABS_Y, CHANNEL };

constexpr int TILE = 16, CELL = 4, BAND = 2;  // pixels, pixels, tiles
constexpr int CHUNK = PF_CUDA ? 32 : 2048;    // Gaussians that are worked on together
constexpr double MIN_ALPHA = 1.0 / 255, MAX_ALPHA = 0.999, MIN_TRANSMITTANCE = 1e-4;

// The pixels whose centres lie within the ellipse's bounding box and the image.
struct Box {
  int32_t x0, y0, x1, y1;
  PF_INLINE bool empty() const { return x0 > x1 || y0 > y1; }
  PF_INLINE int32_t tiles() const { return (x1 / TILE - x0 / TILE + 1) * (y1 / TILE - y0 / TILE + 1); }
  PF_INLINE int32_t first_band() const { return y0 / (TILE * BAND); }
  PF_INLINE int32_t bands() const { return y1 / (TILE * BAND) - first_band() + 1; }
};

// The first and the last of `size` pixels whose centres lie in [low, high].
template <class T> PF_INLINE int32_t first_pixel(T low, int size) {
  const T x = low - T(0.5);
  return x > T(size) ? size : x > T(0) ? int32_t(x) + (T(int32_t(x)) < x) : 0;
}
template <class T> PF_INLINE int32_t last_pixel(T high, int size) {
  const T x = high - T(0.5);
  return x < T(0) ? -1 : x < T(size) ? int32_t(x) < size - 1 ? int32_t(x) : size - 1 : size - 1;
}
template <class T> PF_INLINE Box box_of(const T* row, int width, int height) {
  if (!(row[EXTENT] > T(0))) return {0, 0, -1, -1};
  const T x = row[MEAN], y = row[MEAN + 1], ex = row[EXTENT], ey = row[EXTENT + 1];
  return {first_pixel(x - ex, width), first_pixel(y - ey, height), last_pixel(x + ex, width), last_pixel(y + ey, height)};
}

template <class T> PF_INLINE void clear_row(T* row) {
#if PF_CUDA
  const T zeros[ROW] = {};
  lanes_to_rows(row, ROW, ROW, 1, zeros);
#else
  std::memset(row, 0, ROW * sizeof(T));
#endif
}

// What blending left in slots, summed per Gaussian.
template <class T> struct Slots {
  const T* slots;
  const int32_t* slot_gaussian;
  const int64_t* offsets;  // of each band's slots; in CUDA, of each Gaussian's
  int bands;

#if PF_CUDA
  PF_INLINE void gather(int64_t, int64_t) {}
  PF_INLINE void load(int64_t i, int, T* moments) const {
    for (int k = 0; k < ROW; ++k) moments[k] = T(0);
    for (int64_t slot = offsets[i]; slot < offsets[i + 1]; ++slot) {
      T x[ROW];
      rows_to_lanes(slots + ROW * slot, ROW, ROW, 1, x);
      for (int k = 0; k < ROW; ++k) moments[k] += x[k];
    }
  }
#else
  const T* gathered = nullptr;
  int64_t first = 0;

  // Sums those of the Gaussians [begin, end), band by band.
  void gather(int64_t begin, int64_t end) {
    static thread_local std::vector<T> room(CHUNK * ROW);
    std::memset(room.data(), 0, ROW * (end - begin) * sizeof(T));
    for (int band = 0; band < bands; ++band) {
      int64_t low = offsets[band], high = offsets[band + 1];
      const int64_t last = high;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (slot_gaussian[middle] < begin) low = middle + 1;
        else high = middle;
      }
      for (; low < last && slot_gaussian[low] < end; ++low) {
        T* to = room.data() + ROW * (slot_gaussian[low] - begin);
        for (int k = 0; k < ROW; ++k) to[k] += slots[ROW * low + k];
      }
    }
    gathered = room.data(), first = begin;
  }
  PF_INLINE void load(int64_t i, int n, Lane<T>* moments) const { rows_to_lanes(gathered + ROW * (i - first), ROW, ROW, n, moments); }
#endif
};

// A Gaussian's moments, summed over its slots -> the gradient to its row, channels in place of colour and depth.
template <class R> PF_INLINE void row_gradient(R a, R b, R c, R opacity, const R* m, R* g) {
  using T = scalar_t<R>;
  g[MEAN] = a * m[V_X] + b * m[V_Y], g[MEAN + 1] = b * m[V_X] + c * m[V_Y];
  g[CONIC] = R(T(-0.5)) * m[V_XX], g[CONIC + 1] = -m[V_XY], g[CONIC + 2] = R(T(-0.5)) * m[V_YY];
  g[OPACITY] = m[V] / opacity;
  g[EXTENT] = m[ABS_X], g[EXTENT + 1] = m[ABS_Y];
  for (int k = 0; k < 4; ++k) g[COLOR + k] = m[CHANNEL + k];
}

}  // namespace polyfield
