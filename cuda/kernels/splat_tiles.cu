// Which Gaussians each tile of 16 x 16 pixels blends, in order of depth: rows (splat_row.h) -> entries by tile.
//
// Gaussians are sorted by depth once (radix sort, stable), then cut into (Gaussian, tile) pairs, which a counting sort by
// tile keeps in order. The cut is exact: per row of 4 x 4-pixel cells, the interval that the ellipse covers; an entry is the
// Gaussian's number and a bit for each of the tile's 16 cells that it meets (tighter than tiles alone, as in FlashGS, Feng et al.,
// 2024). The trick: cell rows in lanes; each thread owns a contiguous share of the sorted Gaussians.
#include "lane_pack.h"
#include "op.h"
#include "splat_row.h"
#include <algorithm>
#include <vector>

namespace polyfield {

constexpr int DIGIT = 11, DIGITS = 1 << DIGIT, AHEAD = 12;

template <class T> struct Key { using type = uint32_t; };
template <> struct Key<double> { using type = uint64_t; };
template <class T> struct Keyed {
  typename Key<T>::type key;
  int32_t gaussian;
};

// Shares of [0, n) by thread, and f(share, begin, end) for all at once.
template <class F> void parallel_shares(int64_t n, int shares, F f) {
#pragma omp parallel for schedule(static, 1) if (shares > 1)
  for (int s = 0; s < shares; ++s) f(s, n * s / shares, n * (s + 1) / shares);
}

// Start of each (bin, share) given their counts: bins one after the other, within a bin the shares in order.
template <class C> int64_t starts(C* counts, int64_t bins, int shares, int64_t* first) {
  int64_t total = 0;
  for (int64_t b = 0; b < bins; ++b) {
    if (first) first[b] = total;
    for (int s = 0; s < shares; ++s) {
      const C count = counts[s * bins + b];
      counts[s * bins + b] = C(total);
      total += count;
    }
  }
  return total;
}

// The Gaussians that are seen, by depth; equal depths keep their order.
template <class T> std::vector<Keyed<T>>& sorted_by_depth(const T* rows, int64_t gaussians, int shares) {
  using K = typename Key<T>::type;
  static thread_local std::vector<Keyed<T>> a, b;
  static thread_local std::vector<int64_t> counts;
  counts.assign(std::size_t(shares) * DIGITS, 0);
  int64_t* c = counts.data();
  parallel_shares(gaussians, shares, [=](int s, int64_t begin, int64_t end) {
    int64_t seen = 0;
    for (int64_t i = begin; i < end; ++i) seen += rows[ROW * i + EXTENT] > T(0);
    c[s] = seen;
  });
  const int64_t n = starts(c, 1, shares, nullptr);
  a.resize(n), b.resize(n);
  Keyed<T>*from = a.data(), *to = b.data();
  parallel_shares(gaussians, shares, [=](int s, int64_t begin, int64_t end) {
    Keyed<T>* at = from + c[s];
    for (int64_t i = begin; i < end; ++i)
      if (rows[ROW * i + EXTENT] > T(0)) {
        K key;
        const T depth = rows[ROW * i + DEPTH];
        std::memcpy(&key, &depth, sizeof key);
        constexpr K SIGN = K(1) << (8 * sizeof(K) - 1);
        *at++ = {key & SIGN ? ~key : key | SIGN, int32_t(i)};
      }
  });
  for (int shift = 0; shift < int(8 * sizeof(K)); shift += DIGIT) {
    std::fill(counts.begin(), counts.end(), 0);
    parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++c[s * DIGITS + (from[i].key >> shift) % DIGITS];
    });
    starts(c, DIGITS, shares, nullptr);
    parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[c[s * DIGITS + (from[i].key >> shift) % DIGITS]++] = from[i];
    });
    std::swap(from, to);
  }
  return from == a.data() ? a : b;
}

// f(tile, cells) for the tiles that an ellipse meets, row by row.
template <class T, class F> PF_INLINE void for_tiles(const T* row, const Box& box, int width, int tiles_x, F f) {
  using R = Lane<T>;
  using I = Lane<int32_t>;
  const T a = row[CONIC], b = row[CONIC + 1], c = row[CONIC + 2], x = row[MEAN], ex = row[EXTENT], ey = row[EXTENT + 1];
  // reach = ex^2 det / c, and the ellipse's rightmost point lies at dy = -ex b / c
  const T det = a * c - b * b, reach = ex * ex * det / c, top = -ex * b / c, inverse = T(1) / a, slack = T(1e-3);
  alignas(64) int32_t left[LANES + 4], right[LANES + 4];
  const int last_row = box.y1 / CELL;
  for (int cell_y = box.y0 / TILE * CELL; cell_y <= last_row;) {
    // whole tile rows at a time, as many as the lanes hold
    const R y0 = (iota<T>() + R(T(cell_y))) * R(T(CELL)) + R(T(0.5) - row[MEAN + 1]), y1 = y0 + R(T(CELL - 1));
    const auto outside = (y0 > R(ey + slack)) | (y1 < R(-ey - slack));
    const R to_right = max(min(max(R(top), y0), y1), R(-ey)), to_left = max(min(max(R(-top), y0), y1), R(-ey));
    const R yr = min(to_right, R(ey)), yl = min(to_left, R(ey));
    const R high = R(x) + (sqrt(max(R(reach * a) - R(det) * yr * yr, R(T(0)))) - R(b) * yr) * R(inverse) + R(slack - T(0.5));
    const R low = R(x) - (sqrt(max(R(reach * a) - R(det) * yl * yl, R(T(0)))) + R(b) * yl) * R(inverse) - R(slack + T(0.5));
    const I l(ceil(min(max(low, R(T(0))), R(T(width))))), r(floor(min(max(high, R(T(-1))), R(T(width - 1)))));
    const Mask<int32_t> none = Mask<int32_t>(outside) | (l > r);
    store(left, select(none, I(1 << 30), l >> 2));
    store(right, select(none, I(-1), r >> 2));
    for (int j = 0; j < LANES && cell_y <= last_row; j += CELL, cell_y += CELL) {
      const int *lo = left + j, *hi = right + j;
      const int first = std::min(std::min(lo[0], lo[1]), std::min(lo[2], lo[3])), last = std::max(std::max(hi[0], hi[1]), std::max(hi[2], hi[3]));
      const int tile_row = cell_y / CELL * tiles_x;
      for (int tx = first / CELL; tx <= last / CELL && first <= last; ++tx) {
        uint32_t cells = 0;
        for (int k = 0; k < CELL; ++k) {
          const int from = std::max(lo[k] - CELL * tx, 0), to = std::min(hi[k] - CELL * tx, CELL - 1);
          if (from <= to) cells |= ((2u << to) - (1u << from)) << CELL * k;
        }
        if (cells) f(tile_row + tx, cells);
      }
    }
  }
}

template <class T>
void splat_tiles(const T* rows, int64_t gaussians, int width, int height, int64_t most, int64_t* entries, int64_t* tile_offsets, int32_t* slots) {
  struct Pair { int32_t tile, gaussian; uint32_t cells; };
  static thread_local std::vector<int64_t> counts;
  static thread_local std::vector<Pair> pairs;
  const int shares = gaussians < 4096 ? 1 : thread_count();
  const int tiles_x = int(ceil_div(width, TILE));
  const int64_t tiles = tiles_x * ceil_div(height, TILE);
  const std::vector<Keyed<T>>& sorted = sorted_by_depth(rows, gaussians, shares);
  const Keyed<T>* order = sorted.data();
  const int64_t n = int64_t(sorted.size());

  // Where a Gaussian's gradients are summed: slots[i] + band.
  counts.assign(shares, 0);
  int64_t* c = counts.data();
  parallel_shares(gaussians, shares, [=](int s, int64_t begin, int64_t end) {
    int64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Box box = box_of(rows + ROW * i, width, height);
      if (!box.empty()) slots[i] = int32_t(sum) - box.first_band(), sum += box.bands();
    }
    c[s] = sum;
  });
  starts(c, 1, shares, nullptr);
  parallel_shares(gaussians, shares, [=](int s, int64_t begin, int64_t end) {
    if (c[s] > 0)
      for (int64_t i = begin; i < end; ++i) slots[i] += int32_t(c[s]);
  });

  // Pairs: each share writes where the bounding boxes of the shares before it end.
  std::vector<int64_t> place(shares + 1, 0), made(shares, 0);
  int64_t* p = place.data();
  parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
    int64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (i + AHEAD < end) __builtin_prefetch(rows + ROW * int64_t(order[i + AHEAD].gaussian));
      sum += box_of(rows + ROW * int64_t(order[i].gaussian), width, height).tiles();
    }
    p[s] = sum;
  });
  starts(p, 1, shares, nullptr);
  if (int64_t(pairs.size()) < most) pairs.resize(most + most / 4);
  counts.assign(shares * tiles, 0);
  c = counts.data();
  Pair* all = pairs.data();
  int64_t* m = made.data();
  parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
    Pair* at = all + p[s];
    for (int64_t i = begin; i < end; ++i) {
      if (i + AHEAD < end) __builtin_prefetch(rows + ROW * int64_t(order[i + AHEAD].gaussian));
      const int32_t gaussian = order[i].gaussian;
      const T* row = rows + ROW * int64_t(gaussian);
      for_tiles(row, box_of(row, width, height), width, tiles_x, [&](int32_t tile, uint32_t cells) {
        *at++ = {tile, gaussian, cells};
        ++c[s * tiles + tile];
      });
    }
    m[s] = at - all;
  });
  tile_offsets[tiles] = starts(c, tiles, shares, tile_offsets);
  parallel_shares(n, shares, [=](int s, int64_t, int64_t) {
    for (const Pair* pair = all + p[s]; pair < all + m[s]; ++pair) entries[c[s * tiles + pair->tile]++] = int64_t(pair->cells) << 32 | pair->gaussian;
  });
}

POLYFIELD_OP(splat_tiles_f32, splat_tiles<float>)
POLYFIELD_OP(splat_tiles_f64, splat_tiles<double>)

}  // namespace polyfield
