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
#include "march_rays.h"
#include "op.h"

namespace polyfield {

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

// First pass: ray_offsets (rays + 1) and the number of samples; their runs stay in marched().
void march_grid(const float* origins, const float* directions, const float* near, const float* far, const float* jitter, const int64_t* bits_,
                const uint8_t* states, int64_t rays, int64_t resolution, int64_t cascades, float half, float step, float cone, float longest,
                int64_t max_samples, int32_t* ray_offsets, int64_t* total) {
  const Grid grid(bits_, states, int(resolution), int(cascades), half);
  const Steps s(step, cone, longest);
  const Marching marching(cone > 0, cascades > 1);
  const int64_t tiles = ceil_div(rays, RAY_TILE);
  Marched& kept = marched();
  if (int64_t(kept.runs.size()) < tiles) kept.runs.resize(tiles);
  kept.starts.resize(rays);
  kept.steps = s;
  kept.cone = cone > 0;
  std::fill(ray_offsets, ray_offsets + rays + 1, 0);
  parallel_pieces(tiles, [&](int64_t i) {
    RayTile tile;
    const int64_t begin = i * RAY_TILE, end = std::min(begin + RAY_TILE, rays);
    const int hits = marching.load(tile, s, grid, origins, directions, near, far, jitter, begin, end);
    for (int j = 0; j < hits; ++j) kept.starts[tile.ray[j]] = tile.f[START][j];
    kept.runs[i].clear();
    marching.march(tile, hits, s, grid, max_samples, ray_offsets, kept.runs[i]);
  });
  prefix(ray_offsets, rays, total);
}

// Second pass: expands the runs of the last march_grid.
void march_grid_write(const int32_t* ray_offsets, float* t_starts, float* t_ends, int32_t* ray_indices, int64_t rays) {
  using F = Lane<float>;
  Marched& kept = marched();
  const Steps s = kept.steps;
  parallel_pieces(ceil_div(rays, RAY_TILE), [&](int64_t i) {
    int32_t cursor[RAY_TILE];
    const int64_t begin = i * RAY_TILE, end = std::min(begin + RAY_TILE, rays);
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
  samples.assign(ceil_div(rays, RAY_TILE), {});
  parallel_pieces(ceil_div(rays, RAY_TILE), [&](int64_t i) {
    for (int64_t r = i * RAY_TILE; r < std::min((i + 1) * RAY_TILE, rays); ++r) {
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
  parallel_pieces(ceil_div(rays, RAY_TILE), [&](int64_t i) {
    const int32_t first = ray_offsets[i * RAY_TILE];
    for (int64_t r = i * RAY_TILE; r < std::min((i + 1) * RAY_TILE, rays); ++r)
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
