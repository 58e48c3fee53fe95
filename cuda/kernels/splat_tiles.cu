// Which Gaussians each tile of 16 x 16 pixels blends, in order of depth: rows (splat_row.h) -> entries by tile.
//
// Gaussians are sorted by depth once (stable), then cut into (Gaussian, tile) pairs, which a stable sort by tile keeps in
// order. The cut is exact: per row of 4 x 4-pixel cells, the interval that the ellipse covers; an entry is the number of a
// slot and a bit for each of the tile's 16 cells that the Gaussian meets (tighter than tiles alone, as in FlashGS, Feng et al., 2024).
// The trick: cell rows in lanes, whose bits meet in a tile's first; a radix sort by depth and a counting sort by tile; each
// thread owns a contiguous share of the sorted Gaussians. In CUDA a thread cuts a Gaussian, and both sorts are torch's (see ../splatting.py).
#include "lane_math.h"
#include "op.h"
#include "splat_row.h"
#if !PF_CUDA
#include <algorithm>

#include "scratch.h"
#endif

namespace polyfield {

// The outline alpha = 1/255 of a row.
template <class T> struct Ellipse {
  T a, b, x, y, ey, det, reach, top, inverse;
  PF_INLINE explicit Ellipse(const T* row) : a(row[CONIC]), b(row[CONIC + 1]), x(row[MEAN]), y(row[MEAN + 1]), ey(row[EXTENT + 1]), inverse(T(1) / row[CONIC]) {
    // reach = ex^2 det / c, and the rightmost point lies at dy = -ex b / c
    const T c = row[CONIC + 2], ex = row[EXTENT];
    det = a * c - b * b, reach = ex * ex * det / c, top = -ex * b / c;
  }
  // Whether it meets rows of cells, and if so, the first and last pixels of the image there.
  PF_INLINE Mask<int32_t> meets(Lane<T> cell_row, int width, Lane<int32_t>& left, Lane<int32_t>& right) const {
    using R = Lane<T>;
    const T slack = T(1e-3);
    const R y0 = cell_row * R(T(CELL)) + R(T(0.5) - y), y1 = y0 + R(T(CELL - 1));
    const auto outside = (y0 > R(ey + slack)) | (y1 < R(-ey - slack));
    const R yr = min(max(min(max(R(top), y0), y1), R(-ey)), R(ey)), yl = min(max(min(max(R(-top), y0), y1), R(-ey)), R(ey));
    const R high = R(x) + (sqrt(max(R(reach * a) - R(det) * yr * yr, R(T(0)))) - R(b) * yr) * R(inverse) + R(slack - T(0.5));
    const R low = R(x) - (sqrt(max(R(reach * a) - R(det) * yl * yl, R(T(0)))) + R(b) * yl) * R(inverse) - R(slack + T(0.5));
    left = Lane<int32_t>(ceil(min(max(low, R(T(0))), R(T(width))))), right = Lane<int32_t>(floor(min(max(high, R(T(-1))), R(T(width - 1)))));
    return !(Mask<int32_t>(outside) | (left > right));
  }
};

#if PF_CUDA

// f(tile x, tile y, cells) for the tiles that an ellipse meets, row by row.
template <class T, class F> PF_INLINE void for_tiles(const T* row, const Box& box, int width, F f) {
  const Ellipse<T> ellipse(row);
  for (int y = box.y0 / TILE; y <= box.y1 / TILE; ++y) {
    int32_t from[CELL], to[CELL], first = box.x1 / TILE + 1, last = -1;  // cells
    for (int r = 0; r < CELL; ++r) {
      int32_t left, right;
      const bool some = ellipse.meets(T(CELL * y + r), width, left, right);
      from[r] = some ? left / CELL : CELL * first, to[r] = some ? right / CELL : -1;
      first = min(first, from[r] / CELL), last = max(last, some ? to[r] / CELL : -1);
    }
    for (int x = max(first, box.x0 / TILE); x <= min(last, box.x1 / TILE); ++x) {
      uint32_t cells = 0;
      for (int r = 0; r < CELL; ++r) {
        const int32_t a = max(from[r] - CELL * x, 0), b = min(to[r] - CELL * x, CELL - 1);
        if (a <= b) cells |= ((2u << b) - (1u << a)) << CELL * r;
      }
      if (cells) f(x, y, cells);
    }
  }
}

// Called twice. First, order = 0: counts[i] = number of tiles that Gaussian i meets. Then, with the sums of counts before each,
// by number (slot_offsets) and in order of depth (starts): pairs of a Gaussian and a tile. One kernel, so that both times the
// same instructions round alike.
template <class T>
void splat_pairs(const T* rows, const int64_t* order, Threads<> gaussians, int width, int height, int64_t* counts, const int64_t* slot_offsets,
                 const int64_t* starts, int32_t* tiles, int64_t* entries, int32_t* slot_gaussian) {
  for_each(gaussians, [=](int64_t k) {
    const int64_t i = order ? order[k] : k;
    T row[ROW];
    rows_to_lanes(rows + ROW * i, ROW, ROW, 1, row);
    const Box box = box_of(row, width, height);
    int64_t count = 0;
    const int64_t slot = order ? slot_offsets[i] : 0, start = order ? starts[k] : 0;
    if (!box.empty())
      for_tiles(row, box, width, [&](int32_t x, int32_t y, uint32_t cells) {
        if (order) {
          tiles[start + count] = y * int32_t(ceil_div(width, TILE)) + x;
          entries[start + count] = int64_t(cells) << 32 | (slot + count);
          slot_gaussian[slot + count] = int32_t(i);
        }
        ++count;
      });
    if (!order) counts[i] = count;
  });
}

POLYFIELD_OP(splat_pairs_f32, splat_pairs<float>)
POLYFIELD_OP(splat_pairs_f64, splat_pairs<double>)

#else

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

// What shares of the Gaussians, in the order of their numbers, find in a first look.
template <class T> struct Found {
  Scratch<Keyed<T>> a, b;    // those that are seen
  Scratch<int64_t> counts;   // work space of the sorts
  Scratch<int32_t> pairs;    // of a Gaussian: where its slots begin in `slot_of`, by number
  Scratch<int32_t> slot_of;  // its slots, band after band
};

// The Gaussians that are seen, by depth; equal depths keep their order. On the way, each band's slots: one per Gaussian that
// may meet it, in the order of their numbers.
template <class T>
const Scratch<Keyed<T>>& sorted_by_depth(Found<T>& found, const T* rows, int64_t gaussians, int width, int height, int shares, int32_t* slot_gaussian,
                                             int64_t* band_offsets) {
  using K = typename Key<T>::type;
  const int64_t bands = ceil_div(height, TILE * BAND);
  found.a.resize(gaussians), found.b.resize(gaussians), found.pairs.resize(gaussians);
  found.counts.assign(shares * std::max<int64_t>(DIGITS, bands), 0);
  int64_t* c = found.counts.data();
  int32_t* pairs = found.pairs.data();
  Keyed<T>*from = found.a.data(), *to = found.b.data();
  std::vector<int64_t> seen(shares + 1, 0), paired(shares + 1, 0);
  int64_t *seen_of = seen.data() + 1, *paired_of = paired.data() + 1;
  parallel_shares(gaussians, shares, [=](int s, int64_t begin, int64_t end) {
    Keyed<T>* at = to + begin;
    int64_t *count = c + s * bands, sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      const T* row = rows + ROW * i;
      const Box box = box_of(row, width, height);
      if (box.empty()) continue;
      pairs[i] = int32_t(sum), sum += box.bands();
      for (int band = 0; band < box.bands(); ++band) ++count[box.first_band() + band];
      K key;
      std::memcpy(&key, row + DEPTH, sizeof key);
      constexpr K SIGN = K(1) << (8 * sizeof(K) - 1);
      *at++ = {key & SIGN ? ~key : key | SIGN, int32_t(i)};
    }
    seen_of[s] = at - (to + begin), paired_of[s] = sum;
  });
  band_offsets[bands] = starts(c, bands, shares, band_offsets);
  for (int s = 0; s < shares; ++s) seen[s + 1] += seen[s], paired[s + 1] += paired[s];
  found.slot_of.resize(paired[shares]);
  int32_t* slot_of = found.slot_of.data();
  const int64_t n = seen[shares], *seen_first = seen.data(), *paired_first = paired.data();
  parallel_shares(gaussians, shares, [=](int s, int64_t begin, int64_t) {
    int64_t* next = c + s * bands;
    for (int64_t k = 0; k < seen_first[s + 1] - seen_first[s]; ++k) {
      const Keyed<T> one = from[seen_first[s] + k] = to[begin + k];
      const Box box = box_of(rows + ROW * int64_t(one.gaussian), width, height);
      pairs[one.gaussian] += int32_t(paired_first[s]);
      for (int band = 0; band < box.bands(); ++band) {
        const int64_t slot = next[box.first_band() + band]++;
        slot_of[pairs[one.gaussian] + band] = int32_t(slot), slot_gaussian[slot] = one.gaussian;
      }
    }
  });
  for (int shift = 0; shift < int(8 * sizeof(K)); shift += DIGIT) {
    std::fill_n(c, shares * DIGITS, 0);
    parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++c[s * DIGITS + (from[i].key >> shift) % DIGITS];
    });
    starts(c, DIGITS, shares, nullptr);
    parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[c[s * DIGITS + (from[i].key >> shift) % DIGITS]++] = from[i];
    });
    std::swap(from, to);
  }
  Scratch<Keyed<T>>& sorted = from == found.a.data() ? found.a : found.b;
  sorted.resize(n);
  return sorted;
}

// Pairs of a Gaussian and a tile, in three rows of numbers: tile, slot, cells.
class Pairs {
  Scratch<int32_t> room;
  int64_t most = 0;

 public:
  int64_t count;
  // What is not touched takes no memory; growing would leave smaller blocks behind.
  void clear(int64_t upto) {
    most = upto + LANES, count = 0;
    room.clear(), room.reserve(3 * most);
  }
  int32_t tile(int64_t i) const { return room.data()[i]; }
  int64_t entry(int64_t i) const { return int64_t(uint32_t(room.data()[2 * most + i])) << 32 | room.data()[most + i]; }

  // Where the next go: kept in registers.
  struct End {
    int32_t* at;
    int64_t row;
    PF_INLINE void add(Lane<int32_t> tile, Lane<int32_t> slot, Lane<int32_t> cells, uint32_t chosen) {
      compress(at, tile, chosen), compress(at + row, slot, chosen), compress(at + 2 * row, cells, chosen);
      at += __builtin_popcount(chosen);
    }
  };
  End end() { return {room.data(), most}; }
  void stop(const End& end) { count = end.at - room.data(); }
};

// The tiles that an ellipse meets: rows of cells in lanes, four of a tile side by side, column of tiles by column. slots: of
// its bands, one after the other.
template <class T> PF_INLINE void cut(const T* row, const Box& box, int width, int tiles_x, const int32_t* slots, Pairs::End& found) {
  static_assert(CELL == 4 && BAND == 2, "shifts by 2 and 1");
  using I = Lane<int32_t>;
  const Ellipse<T> ellipse(row);
  const int last_row = box.y1 / CELL, bands = box.bands();
  const I up = (iota<int32_t>() & I(CELL - 1)) << 2;  // of a row of cells, its place among the tile's cells
  for (int base = box.y0 / TILE * CELL; base <= last_row; base += LANES) {
    I left, right;
    const I tile_row = I(base / CELL) + (iota<int32_t>() >> 2);
    const auto some = ellipse.meets(iota<T>() + Lane<T>(T(base)), width, left, right) & (tile_row <= I(box.y1 / TILE));
    const I band = min((tile_row >> 1) - I(box.first_band()), I(bands - 1));
    const I slot = bands > 2 ? gather(slots, band) : select(band > I(0), I(slots[bands - 1]), I(slots[0]));
    const I first_tile = tile_row * I(tiles_x);
    for (int x = box.x0 / TILE; x <= box.x1 / TILE; ++x) {
      const I from = min(max((left >> 2) - I(CELL * x), I(0)), I(CELL)), end = max(min((right >> 2) - I(CELL * x - 1), I(CELL)), I(0));
      I cells = select(some & (from < end), ((I(1) << end) - (I(1) << from)) << up, I(0));
      cells = cells | shuffle(cells, cells, indices<int32_t>([](int i) { return i ^ 1; }));
      cells = cells | shuffle(cells, cells, indices<int32_t>([](int i) { return i ^ 2; }));
      const uint32_t chosen = bits(cells > I(0)) & 0x11111111u & ALL_BITS;  // the first of each four
      found.add(first_tile + I(x), slot, cells, chosen);                    // mostly some: a branch would cost more
    }
  }
}

// most: tiles that all of them meet at most
template <class T>
void splat_tiles(const T* rows, int64_t gaussians, int width, int height, int64_t most, int64_t* entries, int64_t* tile_offsets, int32_t* slot_gaussian,
                 int64_t* band_offsets) {
  static thread_local Found<T> first_look;
  static thread_local Scratch<int64_t> counts;
  static thread_local std::vector<Pairs> pairs_of;  // of each share
  const int shares = gaussians < 4096 ? 1 : thread_count(), tiles_x = int(ceil_div(width, TILE));
  const int64_t tiles = tiles_x * ceil_div(height, TILE);
  const Scratch<Keyed<T>>& sorted = sorted_by_depth(first_look, rows, gaussians, width, height, shares, slot_gaussian, band_offsets);
  const Keyed<T>* order = sorted.data();
  const int64_t n = int64_t(sorted.size());
  pairs_of.resize(shares);
  counts.assign(shares * tiles, 0);
  Pairs* pairs = pairs_of.data();
  const int32_t *first_pair = first_look.pairs.data(), *slot_of = first_look.slot_of.data();
  int64_t* c = counts.data();
  parallel_shares(n, shares, [=](int s, int64_t begin, int64_t end) {
    pairs[s].clear(most);
    Pairs::End found = pairs[s].end();
    for (int64_t i = begin; i < end; ++i) {
      if (i + AHEAD < end) {
        __builtin_prefetch(rows + ROW * int64_t(order[i + AHEAD].gaussian));
        __builtin_prefetch(first_pair + order[i + AHEAD].gaussian);
      }
      if (i + AHEAD / 2 < end) __builtin_prefetch(slot_of + first_pair[order[i + AHEAD / 2].gaussian]);
      const int32_t gaussian = order[i].gaussian;
      const T* row = rows + ROW * int64_t(gaussian);
      const Box box = box_of(row, width, height);
      cut(row, box, width, tiles_x, slot_of + first_pair[gaussian], found);
    }
    pairs[s].stop(found);
    int64_t* count = c + s * tiles;
    for (int64_t i = 0; i < pairs[s].count; ++i) ++count[pairs[s].tile(i)];
  });
  tile_offsets[tiles] = starts(c, tiles, shares, tile_offsets);
  parallel_shares(n, shares, [=](int s, int64_t, int64_t) {
    int64_t* next = c + s * tiles;
    for (int64_t i = 0; i < pairs[s].count; ++i) entries[next[pairs[s].tile(i)]++] = pairs[s].entry(i);
  });
}

POLYFIELD_OP(splat_tiles_f32, splat_tiles<float>)
POLYFIELD_OP(splat_tiles_f64, splat_tiles<double>)

#endif

}  // namespace polyfield
