// The occupancy grid itself: cells to bits, bits to what marching jumps by, which cells to look at, and their running maximum.
//
// Cascade c is the cube [-half 2^c, half 2^c]^3 of resolution^3 cells, z fastest, cascades one after the other; bits hold one word
// per brick of 4^3 cells, bricks in the same order, cell (x, y, z) at bit 16 (x % 4) + 4 (y % 4) + z % 4.
// The trick of `brick_states`: a set of bricks grown by one brick at a time, as bytes, gives the Chebyshev distance
// to the nearest filled brick in a few microseconds per distance. (In CUDA: one axis after the other, for the distance
// along three axes is the largest of the three.)
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"
#if !PF_CUDA
#include <algorithm>
#include <vector>
#endif

namespace polyfield {

constexpr int MAX_DISTANCE = 15;  // bricks; a larger empty neighbourhood is left in several jumps
constexpr int FULL = 0x81;        // all cells of a brick are occupied

// ---- bits -------------------------------------------------------------------------------------------------------
// words[brick] = f(cell) for all bricks: `cell` is the first of the brick's.
template <class F> PF_INLINE void for_bricks(Threads<> bricks, int64_t resolution, int64_t* words, F f) {
  const int64_t B = resolution / 4;
  const auto first_cell = [=](int64_t row) { return (row / B) * 4 * resolution * resolution + (row % B) * 4 * resolution; };
#if PF_CUDA
  for_each(bricks, [=](int64_t i) { words[i] = f(first_cell(i / B) + 4 * (i % B)); });
#else
  for_each(bricks / B, 64, [=](int64_t row) {  // (cascade B + x) B + y of a row of bricks along z
    const int64_t cell = first_cell(row);
    for (int64_t z = 0; z < B; ++z) words[row * B + z] = f(cell + 4 * z);
  });
#endif
}

void pack_bits(const uint8_t* occupied, int64_t* words, Threads<> bricks, int64_t resolution) {
  for_bricks(bricks, resolution, words, [=](int64_t cell) {
    uint64_t word = 0;
    for (int x = 0; x < 4; ++x)
      for (int y = 0; y < 4; ++y) {
        uint32_t four;
        std::memcpy(&four, occupied + cell + (x * resolution + y) * resolution, 4);
        // the lowest bits of four bytes, gathered by one multiplication
        word |= uint64_t(((four & 0x01010101u) * 0x10204080u) >> 28) << (16 * x + 4 * y);
      }
    return int64_t(word);
  });
}

// A cell is occupied from this density on.
void pack_densities(const float* densities, float threshold, int64_t* words, Threads<> bricks, int64_t resolution) {
  for_bricks(bricks, resolution, words, [=](int64_t cell) {
    uint64_t word = 0;
    for (int x = 0; x < 4; ++x)
      for (int y = 0; y < 4; ++y) {
        const float* d = densities + cell + (x * resolution + y) * resolution;
        const uint64_t four = uint64_t(d[0] >= threshold) | uint64_t(d[1] >= threshold) << 1 | uint64_t(d[2] >= threshold) << 2 |
                              uint64_t(d[3] >= threshold) << 3;
        word |= four << (16 * x + 4 * y);
      }
    return int64_t(word);
  });
}

// The number of occupied cells in each row of bricks, and, given where each row's begin, the cells.
#if PF_CUDA
void count_bits(const int64_t* words, int64_t* counts, Warps<> rows, int64_t bricks) {
  for_each(rows, [=](int64_t row) {
    int64_t count = 0;
    for (int64_t z = lane_number(); z < bricks; z += GROUP) count += ones(uint64_t(words[row * bricks + z]));
    store_sum(counts + row, count);
  });
}
#else
void count_bits(const int64_t* words, int64_t* counts, Warps<> rows, int64_t bricks) {
  for_each(rows, [=](int64_t row) {
    int64_t count = 0;
    for (int64_t z = 0; z < bricks; ++z) count += ones(uint64_t(words[row * bricks + z]));
    counts[row] = count;
  });
}
#endif
PF_INLINE int32_t* list_word(uint64_t word, int64_t first, int64_t resolution, int32_t* to) {
  for (; word; word &= word - 1) {
    const int bit = lowest(word);
    *to++ = int32_t(first + ((bit >> 4) * resolution + (bit >> 2 & 3)) * resolution + (bit & 3));
  }
  return to;
}
void list_bits(const int64_t* words, const int64_t* offsets, int32_t* cells, Warps<> rows, int64_t bricks) {
  const int64_t resolution = 4 * bricks;
  for_each(rows, [=](int64_t row) {
    int32_t* to = cells + offsets[row];
    const int64_t cell = (row / bricks) * 4 * resolution * resolution + (row % bricks) * 4 * resolution;
#if PF_CUDA
    for (int64_t begin = 0; begin < bricks; begin += GROUP) {
      const int64_t z = begin + lane_number();
      const uint64_t word = z < bricks ? uint64_t(words[row * bricks + z]) : 0;
      const int32_t upto = prefix_sum(int32_t(ones(word)));
      list_word(word, cell + 4 * z, resolution, to + upto - ones(word));
      to += back(upto);
    }
#else
    for (int64_t z = 0; z < bricks; ++z) to = list_word(uint64_t(words[row * bricks + z]), cell + 4 * z, resolution, to);
#endif
  });
}

// ---- densities --------------------------------------------------------------------------------------------------
// A point in each of the cells: offsets (N, 3) in [0, 1) are where.
void cell_points(const int32_t* cells, const float* offsets, float* points, Threads<> n, int resolution, float half) {
  const uint32_t res = uint32_t(resolution), layer = res * res;
  for_each(n, [=](int64_t i) {
    const uint32_t cell = uint32_t(cells[i]), x = cell / layer, y = cell / res % res, z = cell % res;
    const float scale = float(1u << (x / res)), size = 2 * half / float(resolution) * scale, low = -half * scale;
    points[3 * i] = low + (float(x % res) + offsets[3 * i]) * size;
    points[3 * i + 1] = low + (float(y) + offsets[3 * i + 1]) * size;
    points[3 * i + 2] = low + (float(z) + offsets[3 * i + 2]) * size;
  });
}

// The cell of each point in the finest cascade around it; points beyond all cascades count as on the border.
void locate_cells(const float* points, int32_t* cells, Threads<> n, int cascades, int res, float half) {
  for_each(n, [=](int64_t i) {
    const float* p = points + 3 * i;
    const float reach = fmaxf(fabsf(p[0]), fmaxf(fabsf(p[1]), fabsf(p[2])));
    float extent = half;
    int cascade = 0;
    for (; cascade < cascades - 1 && reach > extent; ++cascade) extent *= 2;
    int cell = cascade;
    for (int d = 0; d < 3; ++d) {
      const float x = (p[d] / extent + 1) * (0.5f * float(res));
      cell = cell * res + (x < 1 ? 0 : x >= float(res) ? res - 1 : int(x));  // NaN: the last
    }
    cells[i] = cell;
  });
}

// densities[cell] = max(decay densities[cell], value); cells that are never occupied (negative) stay.
#if PF_CUDA
// In three launches, so that a cell that is listed twice has one outcome: what the cells hold; that, faded; the maximum.
void read_densities(const float* densities, const int32_t* cells, float decay, float* faded, Threads<> n) {
  for_each(n, [=](int64_t i) {
    const float density = densities[cells[i]];
    faded[i] = density >= 0 ? density * decay : density;
  });
}
void fade_densities(float* densities, const int32_t* cells, const float* faded, Threads<> n) {
  for_each(n, [=](int64_t i) { atomicExch(densities + cells[i], faded[i]); });
}
void raise_densities(float* densities, const int32_t* cells, const float* values, const float* faded, Threads<> n) {
  for_each(n, [=](int64_t i) {  // numbers that are not negative are in the order of their bits
    if (faded[i] >= 0) atomicMax(reinterpret_cast<int32_t*>(densities) + cells[i], as_int(values[i]));
  });
}
#else
// In order, for a cell may be listed twice.
void raise_densities(float* densities, const int32_t* cells, const float* values, double decay, int64_t n) {
  const float d = float(decay);
  for (int64_t i = 0; i < n; ++i) {
    if (i + 16 < n) __builtin_prefetch(densities + cells[i + 16], 1);
    float& density = densities[cells[i]];
    if (density >= 0) density = std::max(values[i], density * d);
  }
}

// Sum and number of those that are not negative.
void density_sum(const float* densities, double* sums, int64_t n) {
  constexpr int64_t CHUNK = 1 << 16;
  std::vector<double> parts(2 * ceil_div(n, CHUNK));
  double* part = parts.data();
  parallel_chunks(n, CHUNK, [=](int64_t begin, int64_t end) {
    float sum[16] = {};
    int32_t count[16] = {};
    int64_t i = begin;
    for (; i + 16 <= end; i += 16)
      for (int j = 0; j < 16; ++j) {
        const bool seen = densities[i + j] >= 0;
        sum[j] += seen ? densities[i + j] : 0;
        count[j] += seen;
      }
    for (; i < end; ++i) {
      sum[0] += densities[i] >= 0 ? densities[i] : 0;
      count[0] += densities[i] >= 0;
    }
    double s = 0, c = 0;
    for (int j = 0; j < 16; ++j) s += sum[j], c += count[j];
    part[2 * (begin / CHUNK)] = s;
    part[2 * (begin / CHUNK) + 1] = c;
  });
  sums[0] = sums[1] = 0;
  for (size_t i = 0; i < parts.size(); i += 2) sums[0] += parts[i], sums[1] += parts[i + 1];
}

#endif

// ---- distances between bricks -----------------------------------------------------------------------------------
// Whether a brick touches another cascade's part of space: those along the border of the cube c - 1 in the middle
// (inner), on both sides, and those along the outside (outer).
PF_INLINE bool at_border(int B, bool inner, bool outer, int x, int y, int z) {
  const auto side = [B](int x) {  // 0 deep inside the inner cube, 1 along its border, 2 beyond its border, 3 further out
    return x < B / 4 - 1 || x > 3 * B / 4 ? 3 : x == B / 4 - 1 || x == 3 * B / 4 ? 2 : x == B / 4 || x == 3 * B / 4 - 1 ? 1 : 0;
  };
  const auto edge = [B](int x) { return x == 0 || x == B - 1; };
  const int a = side(x), b = side(y), c = side(z), s = a > b ? (a > c ? a : c) : (b > c ? b : c);
  return (inner && (s == 1 || s == 2)) || (outer && (edge(x) || edge(y) || edge(z)));
}

#if PF_CUDA

// Per brick two distances along the axes looked at so far, at most 15 each: to what is filled, and to a border with another
// cascade. The last axis makes states of them: a border counts as one brick further away than it is.
template <int AXIS, class F> PF_INLINE void spread(int64_t i, int B, F seeds, int& filled, int& border) {
  const int stride = AXIS == 2 ? 1 : AXIS == 1 ? B : B * B, at = int(i / stride % B);
  filled = border = MAX_DISTANCE;
  for (int j = at - MAX_DISTANCE < 0 ? 0 : at - MAX_DISTANCE; j < B && j <= at + MAX_DISTANCE; ++j) {
    const int away = j < at ? at - j : j - at, there = seeds(i + int64_t(j - at) * stride);
    filled = min(filled, max(away, there & 15));
    border = min(border, max(away, there >> 4));
  }
}
void brick_distances_z(const int64_t* bits_, uint8_t* out, Threads<> n, int B, int cascades) {
  for_each(n, [=](int64_t i) {
    const auto seeds = [=](int64_t k) {
      const int z = int(k % B), y = int(k / B % B), x = int(k / (B * B) % B), c = int(k / (B * B) / B);
      const bool border = cascades > 1 && at_border(B, c > 0, c < cascades - 1, x, y, z);
      return (bits_[k] ? 0 : MAX_DISTANCE) | (border ? 0 : MAX_DISTANCE) << 4;
    };
    int filled, border;
    spread<2>(i, B, seeds, filled, border);
    out[i] = uint8_t(filled | border << 4);
  });
}
void brick_distances_y(const uint8_t* in, uint8_t* out, Threads<> n, int B) {
  for_each(n, [=](int64_t i) {
    int filled, border;
    spread<1>(i, B, [=](int64_t k) { return int(in[k]); }, filled, border);
    out[i] = uint8_t(filled | border << 4);
  });
}
void brick_states(const uint8_t* in, const int64_t* bits_, uint8_t* states, Threads<> n, int B) {
  for_each(n, [=](int64_t i) {
    int filled, border;
    spread<0>(i, B, [=](int64_t k) { return int(in[k]); }, filled, border);
    states[i] = bits_[i] == -1 ? uint8_t(FULL) : uint8_t(min(min(filled, border + 1), MAX_DISTANCE));
  });
}

POLYFIELD_OP(read_densities, read_densities)
POLYFIELD_OP(fade_densities, fade_densities)
POLYFIELD_OP(brick_distances_z, brick_distances_z)
POLYFIELD_OP(brick_distances_y, brick_distances_y)

#else

// out[i] = in[i] or one of its two neighbours along the axis with this stride; three of these grow a set by one brick.
// In one long loop, as if rows had no ends, which are then put right.
static void grow(const uint8_t* __restrict in, uint8_t* __restrict out, int B, int64_t stride, int64_t count) {
  if (B == 1) {
    std::copy(in, in + count, out);
    return;
  }
  for (int64_t i = stride; i < count - stride; ++i) out[i] = in[i - stride] | in[i] | in[i + stride];
  for (int64_t row = 0; row < count; row += stride * B) {
    const int64_t last = row + stride * (B - 1);
    for (int64_t i = row; i < row + stride; ++i) out[i] = in[i] | in[i + stride];
    for (int64_t i = last; i < last + stride; ++i) out[i] = in[i - stride] | in[i];
  }
}

static void add_borders(uint8_t* set, int B, bool inner, bool outer) {
  for (int x = 0; x < B; ++x)
    for (int y = 0; y < B; ++y)
      for (int z = 0; z < B; ++z)
        if (at_border(B, inner, outer, x, y, z)) set[(int64_t(x) * B + y) * B + z] = 1;
}

// bits (cascades, B^3) -> states (cascades B^3 + 4 of padding): 0 mixed, FULL, or how many bricks away the nearest brick is
// that has anything in it or belongs to another cascade (at most MAX_DISTANCE).
void brick_states(const int64_t* bits_, uint8_t* states, int64_t cascades, int64_t resolution) {
  const int B = int(resolution / 4);
  const int64_t count = int64_t(B) * B * B;
  std::fill(states + cascades * count, states + cascades * count + 4, 0);
  parallel_pieces(cascades, [=](int64_t c) {  // by value: bytes may alias anything, sizes included
    std::vector<uint8_t> buffer(2 * count);
    uint8_t *set = buffer.data(), *other = set + count;
    uint8_t* __restrict state = states + c * count;
    const int64_t* words = bits_ + c * count;
    for (int64_t i = 0; i < count; ++i) set[i] = words[i] != 0;
    std::fill(state, state + count, 0);
    for (int d = 1;; ++d) {
      const uint8_t* __restrict now = set;
      for (int64_t i = 0; i < count; ++i) state[i] += now[i] ^ 1;
      if (d == MAX_DISTANCE || !std::memchr(set, 0, count)) break;
      grow(set, other, B, 1, count);
      grow(other, set, B, B, count);
      grow(set, other, B, B * B, count);
      std::swap(set, other);
      if (d == 1 && cascades > 1) add_borders(set, B, c > 0, c < cascades - 1);
    }
    for (int64_t i = 0; i < count; ++i) state[i] = words[i] == -1 ? FULL : state[i];
  });
}

POLYFIELD_OP(density_sum, density_sum)

#endif

POLYFIELD_OP(pack_bits, pack_bits)
POLYFIELD_OP(pack_densities, pack_densities)
POLYFIELD_OP(count_bits, count_bits)
POLYFIELD_OP(list_bits, list_bits)
POLYFIELD_OP(cell_points, cell_points)
POLYFIELD_OP(locate_cells, locate_cells)
POLYFIELD_OP(raise_densities, raise_densities)
POLYFIELD_OP(brick_states, brick_states)

}  // namespace polyfield
