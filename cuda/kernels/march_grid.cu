// Occupancy-grid ray marching: which intervals [t_k, t_k + dt) of each ray lie in occupied cells.
//
// Cascade c is the cube [-half 2^c, half 2^c]^3 cut into resolution^3 cells, one 64-bit word per brick of 4^3 cells
// (Mueller et al., "Instant Neural Graphics Primitives", 2022, appendix E). A ray's intervals form one sequence,
// t_{k+1} = t_k + dt(t_k); interval k is a sample if the cell at its middle is occupied. The sequence is closed in k (linear, then
// geometric, then linear again), so that empty space is left by one jump to the first k past an empty box. The
// trick: boxes come from a map of distances between bricks, 16 rays march in lanes, a lane whose ray has ended
// takes the next ray, and what is kept of a ray are runs [k0, k1) which a second pass expands to samples.
// Boxes are left a few rounding errors early, so that the result equals testing every k. In CUDA a thread marches a ray, and
// a warp expands its runs.
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"
#if !PF_CUDA
#include <algorithm>
#include <vector>
#endif

namespace polyfield {

constexpr float NEVER = 1e30f;

// The sequence of a ray in units of steps u: t(u) is linear below t1 = step / cone, geometric up to t2 = longest / cone,
// and linear again; u(t) is its inverse. t(u + 1) = t(u) + clamp(t(u) cone, step, longest), but for the one step across t1 or t2.
struct Steps {
  float step, inverse_step, cone, longest, inverse_longest, log2_growth, inverse_log2_growth, t1, u1, t2, u2;
  // log2_growth = log2(1 + cone), log2_range = log2(longest / step)
  PF_INLINE Steps(float step_, float cone_, float longest_, float log2_growth_, float log2_range)
      : step(step_), inverse_step(1 / step_), cone(cone_), longest(longest_), inverse_longest(1 / longest_), log2_growth(log2_growth_) {
    inverse_log2_growth = cone > 0 ? 1 / log2_growth : 0;
    t1 = cone > 0 ? step / cone : NEVER;
    t2 = cone > 0 ? longest / cone : NEVER;
    u1 = t1 * inverse_step;
    u2 = u1 + log2_range * inverse_log2_growth;
  }
#if !PF_CUDA
  Steps(float step_, float cone_, float longest_)
      : Steps(step_, cone_, longest_, float(std::log2(1.0 + double(cone_))), float(std::log2(double(longest_) / double(step_)))) {}
#endif
};

template <class R> PF_INLINE R step_at(const Steps& s, R t) { return min(max(t * R(s.cone), R(s.step)), R(s.longest)); }

struct Grid {
  const int32_t* bits;  // half words: two per brick
  const uint8_t* states;
  int resolution, bricks, cascades;
  float half, to_cells;  // world -> cells of cascade 0
  Grid(const void* bits_, const uint8_t* states_, int resolution_, int cascades_, float half_)
      : bits(static_cast<const int32_t*>(bits_)), states(states_), resolution(resolution_), bricks(resolution_ / 4),
        cascades(cascades_), half(half_), to_cells(resolution_ / (2 * half_)) {}
};

PF_INLINE Lane<float> time_of(const Steps& s, Lane<float> u) {
  using F = Lane<float>;
  const F geometric = F(s.t1) * exp2_lanes((u - F(s.u1)) * F(s.log2_growth));
  return select(u < F(s.u1), u * F(s.step), select(u < F(s.u2), geometric, F(s.t2) + (u - F(s.u2)) * F(s.longest)));
}
PF_INLINE Lane<float> unit_of(const Steps& s, Lane<float> t) {
  using F = Lane<float>;
  const F geometric = F(s.u1) + log(max(t, F(s.t1)) * F(1 / s.t1)) * F(1.44269504088896341f * s.inverse_log2_growth);
  return select(t < F(s.t1), t * F(s.inverse_step), select(t < F(s.t2), geometric, F(s.u2) + (t - F(s.t2)) * F(s.inverse_longest)));
}

// ---- rays, clipped and put into units of cells ------------------------------------------------------------------
// The clipped start of a ray, and its end, as the number of intervals whose middle lies before it.
//   start: t of interval 0 (cone: its u).   slack: rounding errors of t along the ray.
template <bool CONE> PF_INLINE void clip(const Steps& s, const Grid& grid, Lane<float> near, Lane<float> far, Lane<float> jitter,
                                         const Lane<float>* o, const Lane<float>* inverse, Lane<float>& start, Lane<float>& slack,
                                         Lane<float>& count, Mask<float>& hit) {
  using F = Lane<float>;
  const F radius(0.5f * float(grid.resolution) * float(1 << (grid.cascades - 1)));
  for (int a = 0; a < 3; ++a) {
    const F t0 = (-radius - o[a]) * inverse[a], t1 = (radius - o[a]) * inverse[a];
    near = max(min(t0, t1), near);
    far = min(max(t0, t1), far);
  }
  hit = (near < far) & (far < F(NEVER)) & (near > F(-NEVER));
  slack = max(abs(near), abs(far)) * F(1e-6f);
  F n;
  if (CONE) {
    start = unit_of(s, near) + jitter;
    n = ceil(unit_of(s, far) - start - F(0.5f));
  } else {
    start = near + jitter * F(s.step);
    n = ceil((far - start) * F(s.inverse_step) - F(0.5f));
  }
  count = select(hit, min(max(n, F(0.0f)), F(1.6e7f)), F(0.0f));
  hit = hit & (count > F(0.0f));
}

// Directions below 1e-15 count as zero: their axis is never left, and misses unless the origin lies inside.
PF_INLINE Lane<float> safe_inverse(Lane<float> d) {
  using F = Lane<float>;
  return select(abs(d) < F(1e-15f), F(NEVER), F(1.0f) / d);
}

// What a lane knows of its ray, and its place k in the sequence.
// An axis is left at (low + (inverse > 0 ? width : 0)) * inverse + b, where b = (bias - o) * inverse.
struct March {
  Lane<float> o[3], d[3], inverse[3], b[3], start, slack, end, k;
};

// Origin and direction in the world -> the ray in cells; returns whether it meets the grid at all.
template <bool CONE> PF_INLINE Mask<float> set_out(March& m, const Steps& s, const Grid& grid, const Lane<float>* origin, const Lane<float>* direction,
                                                   Lane<float> near, Lane<float> far, Lane<float> jitter) {
  using F = Lane<float>;
  const F extent(float(grid.resolution) * float(1 << (grid.cascades - 1)));
  for (int a = 0; a < 3; ++a) {
    m.o[a] = origin[a] * F(grid.to_cells);
    m.d[a] = direction[a] * F(grid.to_cells);
    m.inverse[a] = safe_inverse(m.d[a]);
  }
  Mask<float> hit(false);
  clip<CONE>(s, grid, near, far, jitter, m.o, m.inverse, m.start, m.slack, m.end, hit);
  const F all = m.o[0] + m.o[1] + m.o[2] + m.d[0] + m.d[1] + m.d[2] + m.start;
  hit = hit & (all - all == F(0.0f));  // finite
  for (int a = 0; a < 3; ++a) {
    const auto parallel = m.inverse[a] == F(NEVER);
    const F bias = F(5e-7f) * max(abs(m.o[a]), extent);
    m.b[a] = select(parallel, F(NEVER), (select(m.inverse[a] > F(0.0f), -bias, bias) - m.o[a]) * m.inverse[a]);
    m.inverse[a] = select(parallel, F(0.0f), m.inverse[a]);
  }
  m.k = F(0.0f);
  return hit;
}

// ---- one jump per lane ------------------------------------------------------------------------------------------
PF_INLINE Lane<int32_t> gather_bytes(const uint8_t* p, Lane<int32_t> index) {  // reads three bytes more
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
  return Lane<int32_t>((Lane<int32_t>::V)_mm512_i32gather_epi32((__m512i)index.v, p, 1)) & Lane<int32_t>(0xff);
#elif defined(__AVX2__) && POLYFIELD_LANES == 8
  return Lane<int32_t>((Lane<int32_t>::V)_mm256_i32gather_epi32((const int*)p, (__m256i)index.v, 1)) & Lane<int32_t>(0xff);
#else
#if PF_CUDA
  return p[index];
#else
  Lane<int32_t> r;
  for (int i = 0; i < LANES; ++i) r.v[i] = p[index.v[i]];
  return r;
#endif
#endif
}

// Looks at interval k of every lane: is its cell occupied, and which k is the first that may lie outside the box around it
// of which the same can be said?
template <bool CONE, bool CASCADES>
PF_INLINE Lane<float> jump(const March& m, const Steps& s, const Grid& grid, Mask<float>& occupied) {
  using F = Lane<float>;
  using I = Lane<int32_t>;
  const int B = grid.bricks;
  F t, dt(s.step), begin;
  if (CONE) {
    begin = time_of(s, m.start + m.k);
    dt = step_at(s, begin);
    t = begin + F(0.5f) * dt;
  } else {
    t = (m.start + F(0.5f * s.step)) + m.k * F(s.step);
  }
  F q[3], scale(1.0f), inverse_scale(1.0f);
  I cascade(0);
  for (int a = 0; a < 3; ++a) q[a] = m.o[a] + t * m.d[a];
  if (CASCADES) {
    const F below(-0.99999994f);  // a cube includes its lower faces, like a cell
    F reach = dt * F(grid.to_cells * 0.999999f * 0.5f * grid.resolution);
    for (int a = 0; a < 3; ++a) reach = max(reach, max(q[a], q[a] * below));
    for (int c = 1; c < grid.cascades; ++c)
      cascade += select(Mask<int32_t>(reach >= F(0.5f * grid.resolution * float(1 << (c - 1)))), I(1), I(0));
    inverse_scale = as_float((I(127) - cascade) << 23);
    scale = as_float((I(127) + cascade) << 23);
  }
  I cell[3];
  const F centre(0.5f * grid.resolution);
  for (int a = 0; a < 3; ++a) {
    const F g = CASCADES ? q[a] * inverse_scale + centre : q[a] + centre;
    cell[a] = min(max(I(g), I(0)), I(grid.resolution - 1));
  }
  I brick = ((cell[0] >> 2) * I(B) + (cell[1] >> 2)) * I(B) + (cell[2] >> 2);
  if (CASCADES) brick += cascade * I(B * B * B);
  const I bit = ((cell[0] & I(3)) << 4) | ((cell[1] & I(3)) << 2) | (cell[2] & I(3));
  const I state = gather_bytes(grid.states, brick);
  const I word = gather(grid.bits, brick + brick + (bit >> 5));
  const I distance = state & I(0x7f);
  const Mask<int32_t> mixed = state == I(0);
  const I inside = (state >> 7) | select(mixed, (word >> (bit & I(31))) & I(1), I(0));
  occupied = Mask<float>(inside != I(0));
  const I mask = select(mixed, I(-1), I(-4));
  const I margin = select(mixed, I(0), (distance - I(1)) << 2);
  const F size = F(select(mixed, I(1), (distance << 3) - I(4)));
  F exit(NEVER);
  for (int a = 0; a < 3; ++a) {
    F low((cell[a] & mask) - margin);
    if (CASCADES) low = (low - centre) * scale;
    else low -= centre;
    const F width = CASCADES ? size * scale : size;
    exit = min(exit, low * m.inverse[a] + (width * max(m.inverse[a], F(0.0f)) + m.b[a]));
  }
  F k;
  if (CONE) {
    if (CASCADES) {  // a longer step belongs to a coarser cascade
      const F limit = select(Mask<float>(cascade == I(grid.cascades - 1)), F(NEVER), scale * F(0.999996f / (grid.to_cells * s.cone)));
      exit = min(exit, limit);
    }
    k = ceil(unit_of(s, exit - m.slack) - m.start - F(0.501f + s.cone) - F(5e-7f) * (abs(m.start) + m.end));
  } else {
    k = ceil((exit - m.slack - (m.start + F(0.5f * s.step))) * F(s.inverse_step));
  }
  return min(max(k, m.k + F(1.0f)), m.end);
}

// The intervals [t0, t1) of an entry k in the sequence.
PF_INLINE void interval(const Steps& s, bool cone, Lane<float> start, Lane<float> k, Lane<float>& t0, Lane<float>& t1) {
  using F = Lane<float>;
  if (cone) {
    t0 = time_of(s, start + k);
    t1 = t0 + step_at(s, t0);
  } else {
    t0 = start + k * F(s.step);
    t1 = start + (k + F(1.0f)) * F(s.step);
  }
}

#if PF_CUDA

// ---- one thread marches a ray -----------------------------------------------------------------------------------
constexpr int RUNS = 8;  // of each ray are kept between the passes; if there are more, the second marches on from there

struct Rays {
  const float *origins, *directions, *near, *far, *jitter;
};

// f(k0, k1) for each run of samples from m.k on, until it says no.
template <bool CONE, bool CASCADES, class F> PF_INLINE void march_ray(March& m, const Steps& s, const Grid& grid, F f) {
  float run = -1;
  while (m.k < m.end) {
    bool occupied;
    const float k = jump<CONE, CASCADES>(m, s, grid, occupied);
    if (occupied && run < 0) run = m.k;
    if (!occupied && run >= 0) {
      if (!f(int(run), int(m.k))) return;
      run = -1;
    }
    m.k = k;
  }
  if (run >= 0) f(int(run), int(m.end));
}
template <class F> PF_INLINE void march_ray(const Rays& rays, const Steps& s, const Grid& grid, int64_t r, float k, float& start, F f) {
  float o[3], d[3];
  for (int a = 0; a < 3; ++a) o[a] = rays.origins[3 * r + a], d[a] = rays.directions[3 * r + a];
  const float near = rays.near[r], far = rays.far[r], jitter = rays.jitter ? rays.jitter[r] : 0.0f;
  March m;
  if (!(s.cone > 0 ? set_out<true>(m, s, grid, o, d, near, far, jitter) : set_out<false>(m, s, grid, o, d, near, far, jitter))) return;
  m.k = k;
  start = m.start;
  if (s.cone > 0) {
    if (grid.cascades > 1) march_ray<true, true>(m, s, grid, f);
    else march_ray<true, false>(m, s, grid, f);
  } else {
    if (grid.cascades > 1) march_ray<false, true>(m, s, grid, f);
    else march_ray<false, false>(m, s, grid, f);
  }
}

// First pass: how many samples each ray has, where its sequence starts, and its first runs (R, RUNS, 2).
void march_grid_runs(const float* origins, const float* directions, const float* near, const float* far, const float* jitter, const int64_t* bits_,
                     const uint8_t* states, Threads<128> rays, int resolution, int cascades, float half, float step, float cone, float longest,
                     float log2_growth, float log2_range, int max_samples, int32_t* counts, float* starts, int32_t* runs) {
  for_each(rays, [=](int64_t r) {
    const Grid grid(bits_, states, resolution, cascades, half);
    const Steps s(step, cone, longest, log2_growth, log2_range);
    int32_t count = 0, found = 0;
    float start = 0;
    march_ray({origins, directions, near, far, jitter}, s, grid, r, 0.0f, start, [&](int k0, int k1) {
      if (max_samples && k1 - k0 > max_samples - count) k1 = k0 + max_samples - count;
      if (found < RUNS) {
        runs[2 * (RUNS * r + found)] = k0;
        runs[2 * (RUNS * r + found) + 1] = k1;
      }
      ++found;
      count += k1 - k0;
      return !max_samples || count < max_samples;
    });
    counts[r] = count;
    starts[r] = start;
  });
}

// Second pass: a warp writes the samples of a ray.
void march_grid_samples(const float* origins, const float* directions, const float* near, const float* far, const float* jitter, const int64_t* bits_,
                        const uint8_t* states, Warps<> rays, int resolution, int cascades, float half, float step, float cone, float longest,
                        float log2_growth, float log2_range, const int32_t* ray_offsets, const float* starts, const int32_t* runs, float* t_starts, float* t_ends, int32_t* ray_indices) {
  for_each(rays, [=](int64_t r) {
    const Steps s(step, cone, longest, log2_growth, log2_range);
    int32_t at = ray_offsets[r], last = ray_offsets[r + 1], k = 0;
    float start = starts[r];
    const auto write = [&](int k0, int k1) {
      if (k1 - k0 > last - at) k1 = k0 + last - at;
      for (int j = lane_number(); j < k1 - k0; j += GROUP) {
        float t0, t1;
        interval(s, cone > 0, start, float(k0 + j), t0, t1);
        t_starts[at + j] = t0;
        t_ends[at + j] = t1;
        ray_indices[at + j] = int32_t(r);
      }
      at += k1 - k0;
      return at < last;
    };
    for (int i = 0; i < RUNS && at < last; ++i) {
      const int32_t* run = runs + 2 * (RUNS * r + i);
      k = run[1];
      write(run[0], k);
    }
    if (at < last) {
      const Grid grid(bits_, states, resolution, cascades, half);
      march_ray({origins, directions, near, far, jitter}, s, grid, r, float(k), start, write);
    }
  });
}

POLYFIELD_OP(march_grid_runs, march_grid_runs)
POLYFIELD_OP(march_grid_samples, march_grid_samples)

#else

// ---- tiles of rays ----------------------------------------------------------------------------------------------
constexpr int TILE = 512;
enum Field { OX, OY, OZ, DX, DY, DZ, IX, IY, IZ, BX, BY, BZ, START, SLACK, END, FIELDS };

// Rays of a tile that meet the outermost cube, one after the other.
struct Tile {
  float f[FIELDS][TILE + LANES];
  int32_t ray[TILE + LANES];
};

template <bool CONE> int load_tile(Tile& tile, const Steps& s, const Grid& grid, const float* origins, const float* directions,
                                   const float* near, const float* far, const float* jitter, int64_t begin, int64_t end) {
  using F = Lane<float>;
  int hits = 0;
  for (int64_t r = begin; r < end; r += LANES) {
    const int n = int(end - r < LANES ? end - r : LANES);
    F o[3], d[3];
    for (int a = 0; a < 3; ++a) o[a] = load_strided(origins + 3 * r + a, 3, n), d[a] = load_strided(directions + 3 * r + a, 3, n);
    March m;
    const Mask<float> hit = set_out<CONE>(m, s, grid, o, d, load_n(near + r, n), load_n(far + r, n), jitter ? load_n(jitter + r, n) : F(0.0f));
    const uint32_t chosen = bits(hit & first<float>(n));
    for (int a = 0; a < 3; ++a) {
      compress(tile.f[OX + a] + hits, m.o[a], chosen);
      compress(tile.f[DX + a] + hits, m.d[a], chosen);
      compress(tile.f[IX + a] + hits, m.inverse[a], chosen);
      compress(tile.f[BX + a] + hits, m.b[a], chosen);
    }
    compress(tile.f[START] + hits, m.start, chosen);
    compress(tile.f[SLACK] + hits, m.slack, chosen);
    compress(tile.f[END] + hits, m.end, chosen);
    compress(tile.ray + hits, Lane<int32_t>(int32_t(r)) + iota<int32_t>(), chosen);
    hits += __builtin_popcount(chosen);
  }
  return hits;
}

struct Run { int32_t ray, k0, k1; };

// Lanes, the rays that they march, and where the runs of samples began that they are in (-1: none).
struct Marchers : March {
  Lane<float> run;
  Lane<int32_t> ray;

  PF_INLINE void refill(const Tile& tile, uint32_t chosen, int next) {
    for (int a = 0; a < 3; ++a) {
      o[a] = expand(o[a], chosen, tile.f[OX + a] + next);
      d[a] = expand(d[a], chosen, tile.f[DX + a] + next);
      inverse[a] = expand(inverse[a], chosen, tile.f[IX + a] + next);
      b[a] = expand(b[a], chosen, tile.f[BX + a] + next);
    }
    start = expand(start, chosen, tile.f[START] + next);
    slack = expand(slack, chosen, tile.f[SLACK] + next);
    end = expand(end, chosen, tile.f[END] + next);
    ray = expand(ray, chosen, tile.ray + next);
  }
};

template <bool CONE, bool CASCADES>
void march_tile(const Tile& tile, int hits, const Steps& s, const Grid& grid, int64_t max_samples, int32_t* counts, std::vector<Run>& runs) {
  using F = Lane<float>;
  Marchers m{};
  m.k = m.end = F(0.0f);
  m.run = F(-1.0f);
  int next = 0;
  uint32_t idle = ALL_BITS, live = 0;
  alignas(64) float run_begin[LANES], run_end[LANES];
  alignas(64) int32_t run_ray[LANES];
  for (;;) {
    if (idle && next < hits) {
      uint32_t chosen = idle;
      while (__builtin_popcount(chosen) > hits - next) chosen &= chosen - 1;
      m.refill(tile, chosen, next);
      const float zero[LANES] = {};
      m.k = expand(m.k, chosen, zero);
      next += __builtin_popcount(chosen);
      live |= chosen;
      idle &= ~chosen;
    }
    if (!live) return;
    Mask<float> occupied;
    const F k = jump<CONE, CASCADES>(m, s, grid, occupied);
    const auto in_run = m.run >= F(0.0f);
    const uint32_t ended = bits(k >= m.end) & live;
    const uint32_t hit = bits(occupied) & live, was = bits(in_run);
    m.run = select(in_run, m.run, select(occupied, m.k, F(-1.0f)));
    uint32_t close = ((was & ~hit) | ((was | hit) & ended)) & live;
    uint32_t stop = ended;
    if (close) {
      store(run_begin, m.run);
      store(run_end, select(occupied, k, m.k));
      store(run_ray, m.ray);
      m.run = select(occupied & (k < m.end), m.run, F(-1.0f));
      for (uint32_t rest = close; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        int32_t k0 = int32_t(run_begin[lane]), k1 = int32_t(run_end[lane]);
        int32_t& count = counts[run_ray[lane]];
        if (max_samples && count + (k1 - k0) >= max_samples) {
          k1 = k0 + int32_t(max_samples - count);
          stop |= 1u << lane;
        }
        count += k1 - k0;
        runs.push_back({run_ray[lane], k0, k1});
      }
    }
    m.k = k;
    live &= ~stop;
    idle |= stop;
  }
}

// ---- all rays ---------------------------------------------------------------------------------------------------
// Kept between march_grid and march_grid_write, which the same thread calls one after the other.
struct Marched {
  std::vector<std::vector<Run>> runs;  // one per tile
  std::vector<float> starts;           // one per ray
  std::vector<std::vector<std::pair<float, float>>> samples;  // of march_grid_scalar, per tile
  Steps steps{1, 0, 1};
  bool cone = false;
};
static Marched& marched() {
  static thread_local Marched m;
  return m;
}

static void prefix(int32_t* offsets, int64_t rays, int64_t* total) {
  int64_t sum = 0;
  for (int64_t r = 0; r <= rays; ++r) {
    const int32_t n = r < rays ? offsets[r] : 0;
    offsets[r] = int32_t(sum);
    sum += n;
  }
  *total = sum;
}

// First pass: ray_offsets (rays + 1) and the number of samples; their runs stay in marched().
void march_grid(const float* origins, const float* directions, const float* near, const float* far, const float* jitter, const int64_t* bits_,
                const uint8_t* states, int64_t rays, int64_t resolution, int64_t cascades, float half, float step, float cone, float longest,
                int64_t max_samples, int32_t* ray_offsets, int64_t* total) {
  const Grid grid(bits_, states, int(resolution), int(cascades), half);
  const Steps s(step, cone, longest);
  const int64_t tiles = ceil_div(rays, TILE);
  Marched& kept = marched();
  if (int64_t(kept.runs.size()) < tiles) kept.runs.resize(tiles);
  kept.starts.resize(rays);
  kept.steps = s;
  kept.cone = cone > 0;
  std::fill(ray_offsets, ray_offsets + rays + 1, 0);
  parallel_pieces(tiles, [&](int64_t i) {
    Tile tile;
    const int64_t begin = i * TILE, end = std::min(begin + TILE, rays);
    auto load = cone > 0 ? load_tile<true> : load_tile<false>;
    auto march = cone > 0 ? (cascades > 1 ? march_tile<true, true> : march_tile<true, false>)
                          : (cascades > 1 ? march_tile<false, true> : march_tile<false, false>);
    const int hits = load(tile, s, grid, origins, directions, near, far, jitter, begin, end);
    for (int j = 0; j < hits; ++j) kept.starts[tile.ray[j]] = tile.f[START][j];
    kept.runs[i].clear();
    march(tile, hits, s, grid, max_samples, ray_offsets, kept.runs[i]);
  });
  prefix(ray_offsets, rays, total);
}

// Second pass: expands the runs of the last march_grid.
void march_grid_write(const int32_t* ray_offsets, float* t_starts, float* t_ends, int32_t* ray_indices, int64_t rays) {
  using F = Lane<float>;
  Marched& kept = marched();
  const Steps s = kept.steps;
  parallel_pieces(ceil_div(rays, TILE), [&](int64_t i) {
    int32_t cursor[TILE];
    const int64_t begin = i * TILE, end = std::min(begin + TILE, rays);
    std::copy(ray_offsets + begin, ray_offsets + end, cursor);
    for (const Run& run : kept.runs[i]) {
      const int n = run.k1 - run.k0;
      const int32_t at = cursor[run.ray - begin];
      cursor[run.ray - begin] = at + n;
      const F start(kept.starts[run.ray]);
      F k = F(float(run.k0)) + iota<float>();
      for (int j = 0; j < n; j += LANES) {
        F t0, t1;
        interval(s, kept.cone, start, k, t0, t1);
        store_n(t_starts + at + j, t0, n - j);
        store_n(t_ends + at + j, t1, n - j);
        store_n(ray_indices + at + j, Lane<int32_t>(run.ray), n - j);
        k += F(float(LANES));
      }
    }
  });
}

// ---- the readable version: one ray, one cell at a time ----------------------------------------------------------
static float scalar_time(const Steps& s, float u) {
  if (u < s.u1) return u * s.step;
  return u < s.u2 ? s.t1 * std::exp2((u - s.u1) * s.log2_growth) : s.t2 + (u - s.u2) * s.longest;
}
static float scalar_unit(const Steps& s, float t) {
  if (t < s.t1) return t * s.inverse_step;
  return t < s.t2 ? s.u1 + std::log2(t / s.t1) * s.inverse_log2_growth : s.u2 + (t - s.t2) * s.inverse_longest;
}

// Calls sample(t_start, t_end) for each of a ray's samples, until it says no.
template <bool CONE, bool CASCADES, class F>
void scalar_march(const Grid& grid, const Steps& s, const float* o_, const float* d_, float near, float far, float jitter, F sample) {
  const float radius = 0.5f * grid.resolution * float(1 << (grid.cascades - 1));
  float o[3], d[3], inverse[3], sum = 0;
  for (int a = 0; a < 3; ++a) {
    o[a] = o_[a] * grid.to_cells, d[a] = d_[a] * grid.to_cells;
    inverse[a] = std::abs(d[a]) < 1e-15f ? NEVER : 1 / d[a];
    const float t0 = (-radius - o[a]) * inverse[a], t1 = (radius - o[a]) * inverse[a];
    near = std::max(near, std::min(t0, t1)), far = std::min(far, std::max(t0, t1));
    sum += o[a] + d[a];
  }
  if (!(near < far && far < NEVER && near > -NEVER && std::isfinite(sum))) return;
  const float start = CONE ? scalar_unit(s, near) + jitter : near + jitter * s.step;
  const float middle = start + 0.5f * s.step, slack = std::max(std::abs(near), std::abs(far)) * 1e-6f;
  const float end = std::min(std::ceil((CONE ? scalar_unit(s, far) - start : (far - start) * s.inverse_step) - 0.5f), 1.6e7f);
  float bias[3];  // walls are met a few rounding errors early
  for (int a = 0; a < 3; ++a) bias[a] = (d[a] > 0 ? -5e-7f : 5e-7f) * std::max(std::abs(o[a]), 2 * radius);
  const float centre = 0.5f * grid.resolution;
  for (float k = 0; k < end;) {
    float t_start = 0, dt = s.step, t = middle + k * s.step;
    if (CONE) {
      t_start = scalar_time(s, start + k);
      dt = std::min(std::max(t_start * s.cone, s.step), s.longest);
      t = t_start + 0.5f * dt;
    }
    float q[3];
    for (int a = 0; a < 3; ++a) q[a] = o[a] + t * d[a];
    int cascade = 0;
    if (CASCADES) {
      float reach = dt * (grid.to_cells * 0.999999f * centre);
      for (int a = 0; a < 3; ++a) reach = std::max(reach, std::max(q[a], -0.99999994f * q[a]));
      while (cascade < grid.cascades - 1 && reach >= centre * float(1 << cascade)) ++cascade;
    }
    const float scale = float(1 << cascade), inverse_scale = 1 / scale;
    int cell[3];
    for (int a = 0; a < 3; ++a) cell[a] = std::min(std::max(int(q[a] * inverse_scale + centre), 0), grid.resolution - 1);
    const int B = grid.bricks, brick = ((cascade * B + (cell[0] >> 2)) * B + (cell[1] >> 2)) * B + (cell[2] >> 2);
    const int bit = (cell[0] & 3) << 4 | (cell[1] & 3) << 2 | (cell[2] & 3);
    if (grid.bits[2 * brick + (bit >> 5)] >> (bit & 31) & 1) {
      const bool more = CONE ? sample(t_start, t_start + dt) : sample(start + k * s.step, start + (k + 1) * s.step);
      if (!more) return;
      ++k;
      continue;
    }
    float exit = NEVER;
    for (int a = 0; a < 3; ++a) {
      const float wall = (float(cell[a] + (d[a] > 0)) - centre) * scale + bias[a];
      if (inverse[a] != NEVER) exit = std::min(exit, (wall - o[a]) * inverse[a]);
    }
    if (CONE && CASCADES && cascade < grid.cascades - 1) exit = std::min(exit, scale * 0.999996f / (grid.to_cells * s.cone));
    const float out = CONE ? scalar_unit(s, exit - slack) - start - (0.501f + s.cone) - 5e-7f * (std::abs(start) + end)
                           : (exit - slack - middle) * s.inverse_step;
    k = std::max(k + 1, std::ceil(out));
  }
}

// Both passes of march_grid, for comparison.
void march_grid_scalar(const float* origins, const float* directions, const float* near, const float* far, const float* jitter,
                       const int64_t* bits_, int64_t rays, int64_t resolution, int64_t cascades, float half, float step, float cone,
                       float longest, int64_t max_samples, int32_t* ray_offsets, int64_t* total) {
  const Grid grid(bits_, nullptr, int(resolution), int(cascades), half);
  const Steps s(step, cone, longest);
  auto& samples = marched().samples;
  samples.assign(ceil_div(rays, TILE), {});
  parallel_pieces(ceil_div(rays, TILE), [&](int64_t i) {
    for (int64_t r = i * TILE; r < std::min((i + 1) * TILE, rays); ++r) {
      int32_t n = 0;
      const auto sample = [&](float t0, float t1) {
        samples[i].push_back({t0, t1});
        ++n;
        return !max_samples || n < max_samples;
      };
      const auto march = [&](auto cone_, auto cascades_) {
        scalar_march<cone_, cascades_>(grid, s, origins + 3 * r, directions + 3 * r, near[r], far[r], jitter ? jitter[r] : 0.0f, sample);
      };
      if (cone > 0) cascades > 1 ? march(std::true_type{}, std::true_type{}) : march(std::true_type{}, std::false_type{});
      else cascades > 1 ? march(std::false_type{}, std::true_type{}) : march(std::false_type{}, std::false_type{});
      ray_offsets[r] = n;
    }
  });
  prefix(ray_offsets, rays, total);
}
void march_grid_scalar_write(const int32_t* ray_offsets, float* t_starts, float* t_ends, int32_t* ray_indices, int64_t rays) {
  const auto& samples = marched().samples;
  parallel_pieces(ceil_div(rays, TILE), [&](int64_t i) {
    const int32_t first = ray_offsets[i * TILE];
    for (int64_t r = i * TILE; r < std::min((i + 1) * TILE, rays); ++r)
      for (int32_t at = ray_offsets[r]; at < ray_offsets[r + 1]; ++at) {
        t_starts[at] = samples[i][at - first].first;
        t_ends[at] = samples[i][at - first].second;
        ray_indices[at] = int32_t(r);
      }
  });
}

POLYFIELD_OP(march_grid, march_grid)
POLYFIELD_OP(march_grid_write, march_grid_write)
POLYFIELD_OP(march_grid_scalar, march_grid_scalar)
POLYFIELD_OP(march_grid_scalar_write, march_grid_scalar_write)

#endif

}  // namespace polyfield
