// Rays through an occupancy grid, in lanes: what every kernel that marches shares. See kernels/march_grid.cu.
#pragma once
#include "lane_math.h"
#include "lane_pack.h"
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

#if !PF_CUDA

// ---- tiles of rays ----------------------------------------------------------------------------------------------
constexpr int RAY_TILE = 512;  // rays, at most
enum RayField { OX, OY, OZ, DX, DY, DZ, IX, IY, IZ, BX, BY, BZ, START, SLACK, END, K, FIELDS };

// Rays of a tile that meet the outermost cube, one after the other.
struct RayTile {
  float f[FIELDS][RAY_TILE + LANES];
  int32_t ray[RAY_TILE + LANES];
};

// The rays from begin to end that meet the grid at all; returns how many.
template <bool CONE> int load_tile(RayTile& tile, const Steps& s, const Grid& grid, const float* origins, const float* directions,
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
    compress(tile.f[K] + hits, m.k, chosen);
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

  PF_INLINE void refill(const RayTile& tile, uint32_t chosen, int next) {
    for (int a = 0; a < 3; ++a) {
      o[a] = expand(o[a], chosen, tile.f[OX + a] + next);
      d[a] = expand(d[a], chosen, tile.f[DX + a] + next);
      inverse[a] = expand(inverse[a], chosen, tile.f[IX + a] + next);
      b[a] = expand(b[a], chosen, tile.f[BX + a] + next);
    }
    start = expand(start, chosen, tile.f[START] + next);
    slack = expand(slack, chosen, tile.f[SLACK] + next);
    end = expand(end, chosen, tile.f[END] + next);
    k = expand(k, chosen, tile.f[K] + next);
    ray = expand(ray, chosen, tile.ray + next);
  }
};

// The next runs of a tile's rays, each from its K on; of a ray no more than max_samples, if that is not 0.
template <bool CONE, bool CASCADES>
void march_tile(const RayTile& tile, int hits, const Steps& s, const Grid& grid, int64_t max_samples, int32_t* counts, std::vector<Run>& runs) {
  using F = Lane<float>;
  Marchers m{};
  m.k = m.end = F(0.0f);
  m.run = F(-1.0f);
  int next = 0;
  uint32_t idle = ALL_BITS, live = 0;
  const F longest(max_samples ? float(max_samples) : NEVER);
  alignas(64) float run_begin[LANES], run_end[LANES];
  alignas(64) int32_t run_ray[LANES];
  for (;;) {
    if (idle && next < hits) {
      uint32_t chosen = idle;
      while (__builtin_popcount(chosen) > hits - next) chosen &= chosen - 1;
      m.refill(tile, chosen, next);
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
    const uint32_t full = bits(k - m.run >= longest) & hit;
    const uint32_t close = ((was & ~hit) | ((was | hit) & ended) | full) & live;
    uint32_t stop = ended;
    if (close) {
      store(run_begin, m.run);
      store(run_end, select(occupied, k, m.k));
      store(run_ray, m.ray);
      m.run = select(occupied & (k < m.end) & (k - m.run < longest), m.run, F(-1.0f));
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

// march_tile and load_tile for these steps and this grid
struct Marching {
  decltype(&load_tile<true>) load;
  decltype(&march_tile<true, true>) march;
  Marching(bool cone, bool cascades)
      : load(cone ? load_tile<true> : load_tile<false>),
        march(cone ? (cascades ? march_tile<true, true> : march_tile<true, false>) : (cascades ? march_tile<false, true> : march_tile<false, false>)) {}
};

// Numbers per ray -> where each one's begin, and how many there are in all
inline void prefix(int32_t* offsets, int64_t rays, int64_t* total) {
  int64_t sum = 0;
  for (int64_t r = 0; r <= rays; ++r) {
    const int32_t n = r < rays ? offsets[r] : 0;
    offsets[r] = int32_t(sum);
    sum += n;
  }
  *total = sum;
}

#endif

}  // namespace polyfield
