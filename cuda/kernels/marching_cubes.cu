// Marching cubes: values (B, X, Y, Z) -> vertices (V, 3) on the lattice's edges, triangles (F, 3) with shared vertices.
//
// A row is the Z values of one (x, y). One bit per value says "above the level"; a crossed edge along z is the row
// exclusive-or itself shifted, along y or x the row exclusive-or its neighbour. Vertices are numbered row by row (first
// its z edges, then y, then x), so that a number is a prefix sum plus a population count: no hash map. Passes: bits;
// counts per row and their prefix sums; writing. In the last, a cell's triangles are eight running row counters, permuted
// and offset by the 64-byte record of its case (../marching_cubes_table.py). Everything is placed before it is written:
// the result does not depend on timing, and is the same in CUDA, where a warp works on a row. Blocks (B > 1) are extracted alone, then vertices on shared faces are merged.
// After Lorensen & Cline, SIGGRAPH 1987; row-wise passes as in Schroeder et al., "Flying Edges", LDAV 2015.
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"

namespace polyfield {

// Where the value crosses the level between a (at 0) and b (at 1). Infinities give the middle.
template <class R> PF_INLINE R crossing(R a, R b, R level) {
  const R t = (level - a) / (b - a);
  return (t >= R(0)) & (t <= R(1)) ? t : R(0.5);
}

struct Case {
  uint8_t row[16], offset[16], increment[8], triangles, unused[23];
};
static_assert(sizeof(Case) == 64, "as marching_cubes_table.table() lays it out");

PF_INLINE uint64_t below(int64_t n) { return n >= 64 ? ~uint64_t(0) : n <= 0 ? 0 : (uint64_t(1) << n) - 1; }

struct Lattice {
  int64_t B, X, Y, Z, words;
  const uint64_t* bits;  // (B X Y, words)

  PF_INLINE int64_t rows() const { return B * X * Y; }
};

// One row and its neighbours. A missing neighbour is the row itself: no edges lead there.
struct Row {
  int64_t index, block, x, y;
  const uint64_t* w[4];  // rows (dx, dy) = 00 01 10 11
  bool has_cells;

  PF_INLINE Row(const Lattice& g, int64_t r) : index(r) {
    const uint32_t rest = uint32_t(r) / uint32_t(g.Y);  // 32 bits suffice for rows, and divide several times faster
    y = uint32_t(r) % uint32_t(g.Y);
    x = rest % uint32_t(g.X);
    block = rest / uint32_t(g.X);
    bind(g);
  }
  PF_INLINE void bind(const Lattice& g) {
    const bool right = x + 1 < g.X, up = y + 1 < g.Y;
    w[0] = g.bits + index * g.words;
    w[1] = up ? w[0] + g.words : w[0];
    w[2] = right ? w[0] + g.Y * g.words : w[0];
    w[3] = right && up ? w[2] + g.words : w[0];
    has_cells = right && up;
  }
  PF_INLINE void next(const Lattice& g) {
    ++index;
    if (++y == g.Y) {
      y = 0;
      if (++x == g.X) { x = 0; ++block; }
    }
    bind(g);
  }
};

// 64 values of a row, as bits, shifted one step down in z: bit k = value k + 1.
PF_INLINE uint64_t shifted(const uint64_t* w, int64_t j, int64_t words) { return w[j] >> 1 | (j + 1 < words ? w[j + 1] << 63 : 0); }

// The crossed edges that start in word j of a row.
enum Kind { ALONG_Z, ALONG_Y, ALONG_X };
PF_INLINE uint64_t edges_of(const Lattice& g, const Row& row, int kind, int64_t j) {
  const uint64_t a = row.w[0][j];
  return kind == ALONG_Z ? (a ^ shifted(row.w[0], j, g.words)) & below(g.Z - 1 - 64 * j) : a ^ (kind == ALONG_Y ? row.w[1] : row.w[2])[j];
}

// The cells of word j: which are crossed, and the case of each.
struct Cells {
  uint64_t active, a[4], s[4];
#if defined(__AVX512BW__)
  alignas(64) uint8_t cases[64];
#endif
  PF_INLINE Cells(const Lattice& g, const Row& row, int64_t j) {
    for (int i = 0; i < 4; ++i) a[i] = row.w[i][j], s[i] = shifted(row.w[i], j, g.words);
    active = ((a[0] ^ a[1]) | (a[0] ^ a[2]) | (a[0] ^ a[3]) | (a[0] ^ s[0]) | (a[0] ^ s[1]) | (a[0] ^ s[2]) | (a[0] ^ s[3])) &
             below(g.Z - 1 - 64 * j);
  }
#if defined(__AVX512BW__)
  PF_INLINE void prepare() {
    __m512i c = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i)
      c = _mm512_or_si512(c, _mm512_or_si512(_mm512_maskz_set1_epi8(a[i], char(1 << 2 * i)), _mm512_maskz_set1_epi8(s[i], char(2 << 2 * i))));
    _mm512_store_si512(cases, c);
  }
  PF_INLINE int operator[](int k) const { return cases[k]; }
#else
  PF_INLINE void prepare() {}
  PF_INLINE int operator[](int k) const {
    int c = 0;
    for (int i = 0; i < 4; ++i) c |= int(a[i] >> k & 1) << 2 * i | int(s[i] >> k & 1) << (2 * i + 1);
    return c;
  }
#endif
};

// ---- merging the vertices of blocks -----------------------------------------------------------------------------
PF_INLINE int64_t first_of_kind(const int32_t* vertex_base, const uint32_t* kinds, int64_t r, int kind) {
  return vertex_base[r] + (kind > ALONG_Z ? kinds[r] & 0xffff : 0) + (kind > ALONG_Y ? kinds[r] >> 16 : 0);
}

// An edge of a block belongs to the last block (in order of coordinates) that has it. neighbors (B, 27): the block at offset
// (dx, dy, dz) - 1 of index 9 dx + 3 dy + dz, or -1. Returns 0 if the edge from z on is its block's own, else -1 - the
// owner's vertex; differs: the owner does not cross the level there.
PF_INLINE int32_t owner(const Lattice& g, const Row& row, int kind, int64_t z, const int32_t* neighbors, const int32_t* vertex_base,
                        const uint32_t* kinds, bool& differs) {
  const int64_t n = g.Z - 1, side = g.Z;
  const auto reaches = [=](int d, int64_t at, int along) { return d == 0 || (kind != along && at == (d < 0 ? 0 : n)); };
  const auto inside = [=](int64_t at, int along) { return kind == along || (at > 0 && at < n); };
  if (inside(row.x, ALONG_X) && inside(row.y, ALONG_Y) && inside(z, ALONG_Z)) return 0;
  int best = 26;
  while (best > 13 && !(reaches(best / 9 - 1, row.x, ALONG_X) && reaches(best / 3 % 3 - 1, row.y, ALONG_Y) &&
                        reaches(best % 3 - 1, z, ALONG_Z) && neighbors[row.block * 27 + best] >= 0))
    --best;
  if (best == 13) return 0;
  const int64_t x2 = row.x - n * (best / 9 - 1), y2 = row.y - n * (best / 3 % 3 - 1), z2 = z - n * (best % 3 - 1);
  const Row other(g, (neighbors[row.block * 27 + best] * side + x2) * side + y2);
  int64_t u = first_of_kind(vertex_base, kinds, other.index, kind);
  for (int64_t i = 0; i < z2 / 64; ++i) u += ones(edges_of(g, other, kind, i));
  const uint64_t there = edges_of(g, other, kind, z2 / 64);
  differs = !(there >> z2 % 64 & ~(other.w[0][z2 / 64] >> z2 % 64 ^ row.w[0][z / 64] >> z % 64) & 1);
  return int32_t(-1 - (u + ones(there & below(z2 % 64))));
}

template <class T> struct Output {
  T* vertices;
  int32_t* faces;
  int64_t* edges;              // value index * 3 + axis of each vertex' edge, or null
  const int64_t* coordinates;  // (B, 3) of the blocks, or null
  int32_t* merged;             // see above, or null
};

// Writes the vertex of an edge from z on.
template <class T> PF_INLINE void place_vertex(const Lattice& g, const Row& row, int kind, int64_t z, const T* values, T level, int64_t to, const Output<T>& out) {
  const int64_t* block = out.coordinates ? out.coordinates + 3 * row.block : nullptr;
  const int64_t x0 = row.x + (block ? block[0] * (g.X - 1) : 0), y0 = row.y + (block ? block[1] * (g.Y - 1) : 0);
  const int64_t z0 = z + (block ? block[2] * (g.Z - 1) : 0), stride = kind == ALONG_Z ? 1 : kind == ALONG_Y ? g.Z : g.Y * g.Z;
  const T* here = values + row.index * g.Z + z;
  const T t = crossing(here[0], here[stride], level);
  T* p = out.vertices + 3 * to;
  p[0] = T(x0) + (kind == ALONG_X ? t : T(0));
  p[1] = T(y0) + (kind == ALONG_Y ? t : T(0));
  p[2] = T(z0) + (kind == ALONG_Z ? t : T(0));
  if (out.edges) out.edges[to] = (row.index * g.Z + z) * 3 + (2 - kind);
}

// The vertices before a row's first cell, of the eight rows of edges that its triangles use.
PF_INLINE void first_counters(const Row& row, int64_t Y, const int32_t* vertex_base, const uint32_t* kinds, int32_t* counter) {
  const int64_t right = row.index + Y, up = row.index + 1;
  counter[0] = vertex_base[row.index], counter[1] = vertex_base[up], counter[2] = vertex_base[right], counter[3] = vertex_base[right + 1];
  counter[4] = int32_t(first_of_kind(vertex_base, kinds, row.index, ALONG_Y)), counter[5] = int32_t(first_of_kind(vertex_base, kinds, right, ALONG_Y));
  counter[6] = int32_t(first_of_kind(vertex_base, kinds, row.index, ALONG_X)), counter[7] = int32_t(first_of_kind(vertex_base, kinds, up, ALONG_X));
}

#if PF_CUDA

// ---- a warp per row, its lanes on values, edges or cells in order of z ------------------------------------------
template <class T> void marching_cubes_bits(const T* values, uint64_t* bits_, int32_t* nan, Warps<> words, int64_t Z, T level) {
  for_each(words, [=](int64_t i) {
    const int64_t per_row = ceil_div(Z, 64);
    uint64_t word = 0;
    for (int half = 0; half < 2; ++half) {
      const int64_t z = 64 * (i % per_row) + 32 * half + lane_number();
      const T x = z < Z ? values[i / per_row * Z + z] : T(0);
      word |= uint64_t(group_bits(z < Z && x > level)) << (32 * half);
      if (x != x) atomicExch(nan, 1);
    }
    if (lane_number() == 0) bits_[i] = word;
  });
}

// Per row the number of vertices and of triangles, and kinds as above.
void marching_cubes_counts(const uint64_t* bits_, Warps<> rows, int64_t B, int64_t X, int64_t Y, int64_t Z, const Case* cases,
                           int32_t* vertex_counts, int32_t* face_counts, uint32_t* kinds) {
  for_each(rows, [=](int64_t r) {
    const Lattice g{B, X, Y, Z, ceil_div(Z, 64), bits_};
    const Row row(g, r);
    uint32_t nz = 0, ny = 0, nx = 0;
    int32_t triangles = 0;
    for (int64_t j = 0; j < g.words; ++j) {
      nz += ones(edges_of(g, row, ALONG_Z, j)), ny += ones(edges_of(g, row, ALONG_Y, j)), nx += ones(edges_of(g, row, ALONG_X, j));
      if (!row.has_cells) continue;
      const Cells cells(g, row, j);
      for (int k = lane_number(); k < 64; k += GROUP)
        if (cells.active >> k & 1) triangles += cases[cells[k]].triangles;
    }
    triangles = tree_sum(triangles);
    if (lane_number() == 0) vertex_counts[r] = int32_t(nz + ny + nx), face_counts[r] = triangles, kinds[r] = nz | ny << 16;
  });
}

// f(kind, z, v) for each crossed edge of a row, v the number of its vertex.
template <class F> PF_INLINE void for_edges(const Lattice& g, const Row& row, int64_t v, F f) {
  for (int kind = ALONG_Z; kind <= ALONG_X; ++kind)
    for (int64_t j = 0; j < g.words; ++j) {
      const uint64_t edges = edges_of(g, row, kind, j);
      for (int k = lane_number(); k < 64; k += GROUP)
        if (edges >> k & 1) f(kind, 64 * j + k, v + ones(edges & below(k)));
      v += ones(edges);
    }
}

void marching_cubes_owners(const uint64_t* bits_, Warps<> rows, int64_t B, int64_t side, const int32_t* neighbors, const int32_t* vertex_base,
                           const uint32_t* kinds, int32_t* merged, int32_t* disagree) {
  for_each(rows, [=](int64_t r) {
    const Lattice g{B, side, side, side, ceil_div(side, 64), bits_};
    const Row row(g, r);
    for_edges(g, row, vertex_base[r], [&](int kind, int64_t z, int64_t v) {
      bool differs = false;
      merged[v] = owner(g, row, kind, z, neighbors, vertex_base, kinds, differs);
      if (differs) atomicExch(disagree, 1);
    });
  });
}

// merged (V,) or null: the number of a vertex that its block owns, else negative.
template <class T>
void marching_cubes_vertices(const T* values, const uint64_t* bits_, Warps<> rows, int64_t B, int64_t X, int64_t Y, int64_t Z, T level,
                             const int32_t* vertex_base, const int64_t* coordinates, int32_t* merged, T* vertices, int64_t* edges) {
  for_each(rows, [=](int64_t r) {
    const Lattice g{B, X, Y, Z, ceil_div(Z, 64), bits_};
    const Row row(g, r);
    const Output<T> out{vertices, nullptr, edges, coordinates, merged};
    if (vertex_base[r] == vertex_base[r + 1]) return;
    for_edges(g, row, vertex_base[r], [&](int kind, int64_t z, int64_t v) {
      const int64_t to = merged ? merged[v] : v;
      if (to >= 0) place_vertex(g, row, kind, z, values, level, to, out);
    });
  });
}

// merged (V,) or null: the final number of each vertex.
void marching_cubes_faces(const uint64_t* bits_, Warps<> rows, int64_t B, int64_t X, int64_t Y, int64_t Z, const Case* cases,
                          const int32_t* vertex_base, const int32_t* face_base, const uint32_t* kinds, const int32_t* merged, int32_t* faces) {
  for_each(rows, [=](int64_t r) {
    PF_SHARED(int32_t, counters, [8][128]);  // of every lane: the vertices before its cell, row by row
    const Lattice g{B, X, Y, Z, ceil_div(Z, 64), bits_};
    const Row row(g, r);
    if (face_base[r] == face_base[r + 1]) return;
    int32_t first[8];
    first_counters(row, g.Y, vertex_base, kinds, first);
    int32_t* p = faces + 3 * int64_t(face_base[r]);
    for (int64_t j = 0; j < g.words; ++j) {
      const Cells cells(g, row, j);
      uint64_t crossed[8];
      for (int i = 0; i < 4; ++i) crossed[i] = (cells.a[i] ^ cells.s[i]) & below(g.Z - 1 - 64 * j);
      crossed[4] = cells.a[0] ^ cells.a[1], crossed[5] = cells.a[2] ^ cells.a[3];
      crossed[6] = cells.a[0] ^ cells.a[2], crossed[7] = cells.a[1] ^ cells.a[3];
      for (int half = 0; half < 64; half += GROUP) {
        if (!(cells.active >> half & WARP)) continue;
        const int k = half + lane_number();
        const Case& c = cases[cells[k]];
        const int32_t triangles = cells.active >> k & 1 ? c.triangles : 0, upto = prefix_sum(triangles);
        for (int i = 0; i < 8; ++i) counters[i][threadIdx.x] = first[i] + ones(crossed[i] & below(k));
        int32_t* to = p + 3 * (upto - triangles);
        for (int i = 0; i < 3 * triangles; ++i) {
          const int32_t v = counters[c.row[i]][threadIdx.x] + c.offset[i];
          to[i] = merged ? merged[v] : v;
        }
        p += 3 * back(upto);
      }
      for (int i = 0; i < 8; ++i) first[i] += ones(crossed[i]);
    }
  });
}

POLYFIELD_OP(marching_cubes_bits_f32, marching_cubes_bits<float>)
POLYFIELD_OP(marching_cubes_bits_f64, marching_cubes_bits<double>)
POLYFIELD_OP(marching_cubes_counts, marching_cubes_counts)
POLYFIELD_OP(marching_cubes_owners, marching_cubes_owners)
POLYFIELD_OP(marching_cubes_vertices_f32, marching_cubes_vertices<float>)
POLYFIELD_OP(marching_cubes_vertices_f64, marching_cubes_vertices<double>)
POLYFIELD_OP(marching_cubes_faces, marching_cubes_faces)

#else

constexpr int64_t ROWS_PER_CHUNK = 128, ROWS_AHEAD = 4;

// ---- pass 1: bits -----------------------------------------------------------------------------------------------
// Returns whether the row holds a NaN.
template <class T> bool row_bits(const T* v, int64_t Z, T level, uint64_t* words) {
  using L = Lane<T>;
  bool nan = false;
  for (int64_t begin = 0; begin < Z; begin += 64, ++words) {
    const int64_t n = Z - begin < 64 ? Z - begin : 64;
    uint64_t word = 0;
    int64_t i = 0;
    Mask<T> unordered(false);
    for (; i + LANES <= n; i += LANES) {
      const L x = load(v + begin + i);
      word |= uint64_t(bits(x > L(level))) << i;
      unordered = unordered | (x != x);
    }
    for (; i < n; ++i) {
      const T x = v[begin + i];
      word |= uint64_t(x > level) << i;
      nan |= x != x;
    }
    nan |= any(unordered);
    *words = word;
  }
  return nan;
}

// ---- pass 2: counts -----------------------------------------------------------------------------------------------
// Per row: vertex_base, face_base = the number of vertices and triangles before it; kinds = how many z | y << 16 edges it has.
// totals = vertices, triangles, any NaN.
template <class T>
void marching_cubes_count(const T* values, int64_t B, int64_t X, int64_t Y, int64_t Z, double level_, const Case* cases, uint64_t* bits_,
                          int32_t* vertex_base, int32_t* face_base, uint32_t* kinds, int64_t* totals) {
  const Lattice g{B, X, Y, Z, ceil_div(Z, 64), bits_};
  const T level = T(level_);
  int nan = 0;
  parallel_chunks(g.rows(), ROWS_PER_CHUNK, [=, &nan](int64_t begin, int64_t end) {
    bool found = false;
    for (int64_t r = begin; r < end; ++r) found |= row_bits(values + r * Z, Z, level, bits_ + r * g.words);
    if (found) __atomic_store_n(&nan, 1, __ATOMIC_RELAXED);
  });
  parallel_pieces(ceil_div(g.rows(), ROWS_PER_CHUNK), [=](int64_t chunk) {
    const int64_t begin = chunk * ROWS_PER_CHUNK, end = begin + ROWS_PER_CHUNK < g.rows() ? begin + ROWS_PER_CHUNK : g.rows();
    for (Row row(g, begin); row.index < end; row.next(g)) {
      uint32_t nz = 0, ny = 0, nx = 0, triangles = 0;
      for (int64_t j = 0; j < g.words; ++j) {
        const uint64_t y = row.w[0][j] ^ row.w[1][j], x = row.w[0][j] ^ row.w[2][j];
        nz += ones(edges_of(g, row, ALONG_Z, j));
        ny += ones(y), nx += ones(x);
        if (!row.has_cells) continue;
        Cells cells(g, row, j);
        if (!cells.active) continue;
        cells.prepare();
        for (uint64_t m = cells.active; m; m &= m - 1) triangles += cases[cells[lowest(m)]].triangles;
      }
      vertex_base[row.index] = int32_t(nz + ny + nx);
      face_base[row.index] = int32_t(triangles);
      kinds[row.index] = nz | ny << 16;
    }
  });
  int64_t vertices = 0, faces = 0;
  for (int64_t r = 0; r < g.rows(); ++r) {
    const int32_t v = vertex_base[r], f = face_base[r];
    vertex_base[r] = int32_t(vertices), face_base[r] = int32_t(faces);
    vertices += v, faces += f;
  }
  vertex_base[g.rows()] = int32_t(vertices), face_base[g.rows()] = int32_t(faces);
  totals[0] = vertices, totals[1] = faces, totals[2] = nan;
}

// Afterwards merged[v] is the final number of a vertex that its block owns, else -1 - the owner's vertex. totals = owned
// vertices, whether two blocks disagree about a shared edge.
void marching_cubes_merge(int64_t B, int64_t n, const int32_t* neighbors, const uint64_t* bits_, const int32_t* vertex_base,
                          const uint32_t* kinds, int32_t* merged, int64_t* block_base, int64_t* totals) {
  const int64_t side = n + 1;
  const Lattice g{B, side, side, side, ceil_div(side, 64), bits_};
  int disagree = 0;
  parallel_chunks(B, 16, [=, &disagree](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t owned = 0, v = vertex_base[b * side * side];
      for (Row row(g, b * side * side); row.block == b; row.next(g)) {
        for (int kind = ALONG_Z; kind <= ALONG_X; ++kind)
          for (int64_t j = 0; j < g.words; ++j)
            for (uint64_t m = edges_of(g, row, kind, j); m; m &= m - 1, ++v) {
              bool differs = false;
              merged[v] = owner(g, row, kind, 64 * j + lowest(m), neighbors, vertex_base, kinds, differs);
              owned += merged[v] == 0;
              if (differs) __atomic_store_n(&disagree, 1, __ATOMIC_RELAXED);
            }
      }
      block_base[b] = owned;
    }
  });
  int64_t total = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t owned = block_base[b];
    block_base[b] = total;
    total += owned;
  }
  parallel_chunks(B, 16, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t number = block_base[b];
      for (int64_t v = vertex_base[b * side * side]; v < vertex_base[(b + 1) * side * side]; ++v)
        if (merged[v] >= 0) merged[v] = int32_t(number++);
    }
  });
  totals[0] = total, totals[1] = disagree;
}

// ---- pass 3: vertices and triangles -----------------------------------------------------------------------------
template <class T>
void write_vertices(const Lattice& g, const Row& row, const T* values, T level, int64_t v, const Output<T>& out) {
  for (int kind = ALONG_Z; kind <= ALONG_X; ++kind)
    for (int64_t j = 0; j < g.words; ++j)
      for (uint64_t m = edges_of(g, row, kind, j); m; m &= m - 1, ++v) {
        const int64_t to = out.merged ? out.merged[v] : v;
        if (to >= 0) place_vertex(g, row, kind, 64 * j + lowest(m), values, level, to, out);
      }
}

// Asks for the values that write_vertices will read: a surface meets memory in an order that no processor foresees, and
// waiting for it was two thirds of this pass. (Inlined by force: GCC takes a function of prefetches alone for one without effect.)
template <class T> PF_INLINE void prefetch_vertices(const Lattice& g, const Row& row, const T* values) {
  const T* here = values + row.index * g.Z;
  for (int64_t j = 0; j < g.words; ++j) {
    const uint64_t x = edges_of(g, row, ALONG_X, j);
    for (uint64_t m = x | edges_of(g, row, ALONG_Y, j) | edges_of(g, row, ALONG_Z, j); m; m &= m - 1)
      __builtin_prefetch(here + 64 * j + lowest(m));
    for (uint64_t m = x; m; m &= m - 1) __builtin_prefetch(here + 64 * j + lowest(m) + g.Y * g.Z);
  }
}

// Writes the row's triangles at p; whatever lies in [p, limit) may be overwritten beyond them.
inline int32_t* write_faces(const Lattice& g, const Row& row, const Case* cases, const int32_t* vertex_base, const uint32_t* kinds, int32_t* p,
                            const int32_t* limit) {
  alignas(32) int32_t counter[8];
  first_counters(row, g.Y, vertex_base, kinds, counter);
#if defined(__AVX2__)
  __m256i counters = _mm256_load_si256((const __m256i*)counter);
  const auto widen = [](const uint8_t* q) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)q)); };
#endif
  for (int64_t j = 0; j < g.words; ++j) {
    Cells cells(g, row, j);
    if (!cells.active) continue;
    cells.prepare();
    for (uint64_t m = cells.active; m; m &= m - 1) {
      const Case& c = cases[cells[lowest(m)]];
#if defined(__AVX2__)
      const __m256i first = _mm256_add_epi32(_mm256_permutevar8x32_epi32(counters, widen(c.row)), widen(c.offset));
      const __m256i second = _mm256_add_epi32(_mm256_permutevar8x32_epi32(counters, widen(c.row + 8)), widen(c.offset + 8));
      if (p + 16 <= limit) {
        _mm256_storeu_si256((__m256i*)p, first);
        _mm256_storeu_si256((__m256i*)(p + 8), second);
      } else {
        int32_t all[16];
        _mm256_storeu_si256((__m256i*)all, first);
        _mm256_storeu_si256((__m256i*)(all + 8), second);
        std::memcpy(p, all, 12 * c.triangles);
      }
      counters = _mm256_add_epi32(counters, widen(c.increment));
#else
      (void)limit;
      for (int i = 0; i < 3 * c.triangles; ++i) p[i] = counter[c.row[i]] + c.offset[i];
      for (int i = 0; i < 8; ++i) counter[i] += c.increment[i];
#endif
      p += 3 * c.triangles;
    }
  }
  return p;
}

template <class T>
void marching_cubes_write(const T* values, int64_t B, int64_t X, int64_t Y, int64_t Z, double level_, const Case* cases, const uint64_t* bits_,
                          const int32_t* vertex_base, const int32_t* face_base, const uint32_t* kinds, const int64_t* coordinates,
                          int32_t* merged, T* vertices, int32_t* faces, int64_t* edges) {
  const Lattice g{B, X, Y, Z, ceil_div(Z, 64), bits_};
  const Output<T> out{vertices, faces, edges, coordinates, merged};
  const T level = T(level_);
  const int64_t chunks = ceil_div(g.rows(), ROWS_PER_CHUNK);
  const auto last = [&g](int64_t chunk) { return (chunk + 1) * ROWS_PER_CHUNK < g.rows() ? (chunk + 1) * ROWS_PER_CHUNK : g.rows(); };
  parallel_pieces(chunks, [=](int64_t chunk) {
    const int64_t end = last(chunk);
    const int32_t* limit = faces + 3 * int64_t(face_base[end]);
    for (Row row(g, chunk * ROWS_PER_CHUNK); row.index < end; row.next(g)) {
      if (row.index + ROWS_AHEAD < end) prefetch_vertices(g, Row(g, row.index + ROWS_AHEAD), values);
      if (vertex_base[row.index] != vertex_base[row.index + 1]) write_vertices(g, row, values, level, vertex_base[row.index], out);
      if (face_base[row.index] != face_base[row.index + 1])
        write_faces(g, row, cases, vertex_base, kinds, faces + 3 * int64_t(face_base[row.index]), limit);
    }
  });
  if (!merged) return;
  const int64_t vertices_of_blocks = vertex_base[g.rows()];
  parallel_chunks(vertices_of_blocks, 1 << 16, [=](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v)
      if (merged[v] < 0) merged[v] = merged[-1 - merged[v]];
  });
  parallel_chunks(3 * int64_t(face_base[g.rows()]), 1 << 16, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) faces[i] = merged[faces[i]];
  });
}

POLYFIELD_OP(marching_cubes_count_f32, marching_cubes_count<float>)
POLYFIELD_OP(marching_cubes_count_f64, marching_cubes_count<double>)
POLYFIELD_OP(marching_cubes_merge, marching_cubes_merge)
POLYFIELD_OP(marching_cubes_write_f32, marching_cubes_write<float>)
POLYFIELD_OP(marching_cubes_write_f64, marching_cubes_write<double>)

#endif

}  // namespace polyfield
