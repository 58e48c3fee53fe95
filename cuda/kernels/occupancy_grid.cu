// The occupancy grid itself: cells to bits, bits to what marching jumps by, which cells to look at, and their running maximum.
//
// Cascade c is the cube [-half 2^c, half 2^c]^3 of resolution^3 cells, z fastest, cascades one after the other; bits hold one word
// per brick of 4^3 cells, bricks in the same order, cell (x, y, z) at bit 16 (x % 4) + 4 (y % 4) + z % 4.
// The trick of `brick_states`: a set of bricks grown by one brick at a time, as bytes, gives the Chebyshev distance
// to the nearest filled brick in a few microseconds per distance.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "lane.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {

#if !PF_CUDA

constexpr int MAX_DISTANCE = 15;  // bricks; a larger empty neighbourhood is left in several jumps
constexpr int FULL = 0x81;        // all cells of a brick are occupied

// ---- bits -------------------------------------------------------------------------------------------------------
// f(cell, word) for all bricks: `cell` is the first of the brick's, and *word is to be written.
template <class F> void for_bricks(int64_t cascades, int64_t resolution, int64_t* words, F f) {
  const int64_t B = resolution / 4;
  parallel_chunks(cascades * B * B, 64, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {  // (cascade B + x) B + y of a row of bricks along z
      const int64_t cell = (row / B) * 4 * resolution * resolution + (row % B) * 4 * resolution;
      for (int64_t z = 0; z < B; ++z) words[row * B + z] = f(cell + 4 * z);
    }
  });
}

void pack_bits(const uint8_t* occupied, int64_t* words, int64_t cascades, int64_t resolution) {
  for_bricks(cascades, resolution, words, [=](int64_t cell) {
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
void pack_densities(const float* densities, double threshold, int64_t* words, int64_t cascades, int64_t resolution) {
  const float least = float(threshold);
  for_bricks(cascades, resolution, words, [=](int64_t cell) {
    uint64_t word = 0;
    for (int x = 0; x < 4; ++x)
      for (int y = 0; y < 4; ++y) {
        const float* d = densities + cell + (x * resolution + y) * resolution;
        const uint64_t four = uint64_t(d[0] >= least) | uint64_t(d[1] >= least) << 1 | uint64_t(d[2] >= least) << 2 | uint64_t(d[3] >= least) << 3;
        word |= four << (16 * x + 4 * y);
      }
    return int64_t(word);
  });
}

// The number of occupied cells in each row of bricks, and, given where each row's begin, the cells.
void count_bits(const int64_t* words, int64_t* offsets, int64_t rows, int64_t bricks) {
  parallel_chunks(rows, 64, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t count = 0;
      for (int64_t z = 0; z < bricks; ++z) count += __builtin_popcountll(uint64_t(words[row * bricks + z]));
      offsets[row + 1] = count;
    }
  });
  offsets[0] = 0;
  for (int64_t row = 0; row < rows; ++row) offsets[row + 1] += offsets[row];
}
void list_bits(const int64_t* words, const int64_t* offsets, int32_t* cells, int64_t rows, int64_t bricks) {
  const int64_t resolution = 4 * bricks;
  parallel_chunks(rows, 64, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int32_t* to = cells + offsets[row];
      for (int64_t z = 0; z < bricks; ++z) {
        const int64_t first = (row / bricks) * 4 * resolution * resolution + (row % bricks) * 4 * resolution + 4 * z;
        for (uint64_t rest = uint64_t(words[row * bricks + z]); rest; rest &= rest - 1) {
          const int bit = __builtin_ctzll(rest);
          *to++ = int32_t(first + ((bit >> 4) * resolution + (bit >> 2 & 3)) * resolution + (bit & 3));
        }
      }
    }
  });
}

// ---- densities --------------------------------------------------------------------------------------------------
// A point in each of the cells: offsets (N, 3) in [0, 1) are where.
void cell_points(const int32_t* cells, const float* offsets, float* points, int64_t n, int64_t resolution, float half) {
  parallel_chunks(n, 4096, [=](int64_t begin, int64_t end) {
    const uint32_t res = uint32_t(resolution), layer = res * res;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t cell = uint32_t(cells[i]), x = cell / layer, y = cell / res % res, z = cell % res;
      const float size = std::ldexp(2 * half / resolution, int(x / res)), low = -std::ldexp(half, int(x / res));
      points[3 * i] = low + (float(x % res) + offsets[3 * i]) * size;
      points[3 * i + 1] = low + (float(y) + offsets[3 * i + 1]) * size;
      points[3 * i + 2] = low + (float(z) + offsets[3 * i + 2]) * size;
    }
  });
}

// The cell of each point in the finest cascade around it; points beyond all cascades count as on the border.
void locate_cells(const float* points, int32_t* cells, int64_t n, int64_t cascades, int64_t resolution, float half) {
  parallel_chunks(n, 4096, [=](int64_t begin, int64_t end) {
    const int res = int(resolution);
    for (int64_t i = begin; i < end; ++i) {
      const float* p = points + 3 * i;
      const float reach = std::max({std::abs(p[0]), std::abs(p[1]), std::abs(p[2])});
      float extent = half;
      int cascade = 0;
      for (; cascade < cascades - 1 && reach > extent; ++cascade) extent *= 2;
      int cell = cascade;
      for (int d = 0; d < 3; ++d) {
        const float x = (p[d] / extent + 1) * (0.5f * resolution);
        cell = cell * res + (x < 1 ? 0 : x >= float(res) ? res - 1 : int(x));  // NaN: the last
      }
      cells[i] = cell;
    }
  });
}

// densities[cell] = max(decay densities[cell], value); cells that are never occupied (negative) stay. In order, for a
// cell may be listed twice.
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

// ---- distances between bricks -----------------------------------------------------------------------------------
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

// Adds the bricks of cascade c that touch another cascade's part of space: those along the border of the cube c - 1 in
// the middle, on both sides, and those along the outside.
static void add_borders(uint8_t* set, int B, bool inner, bool outer) {
  const auto side = [B](int x) {  // 0 deep inside the inner cube, 1 along its border, 2 beyond its border, 3 further out
    return x < B / 4 - 1 || x > 3 * B / 4 ? 3 : x == B / 4 - 1 || x == 3 * B / 4 ? 2 : x == B / 4 || x == 3 * B / 4 - 1 ? 1 : 0;
  };
  const auto edge = [B](int x) { return x == 0 || x == B - 1; };
  for (int x = 0; x < B; ++x)
    for (int y = 0; y < B; ++y)
      for (int z = 0; z < B; ++z) {
        const int s = std::max({side(x), side(y), side(z)});
        if ((inner && (s == 1 || s == 2)) || (outer && (edge(x) || edge(y) || edge(z)))) set[(int64_t(x) * B + y) * B + z] = 1;
      }
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

POLYFIELD_OP(pack_bits, pack_bits)
POLYFIELD_OP(pack_densities, pack_densities)
POLYFIELD_OP(count_bits, count_bits)
POLYFIELD_OP(list_bits, list_bits)
POLYFIELD_OP(cell_points, cell_points)
POLYFIELD_OP(locate_cells, locate_cells)
POLYFIELD_OP(raise_densities, raise_densities)
POLYFIELD_OP(density_sum, density_sum)
POLYFIELD_OP(brick_states, brick_states)

#endif

}  // namespace polyfield
