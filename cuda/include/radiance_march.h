// Rays through an occupancy grid and a radiance field at once: which occupied intervals rays meet, how dense the field is
// there, and which of them can be seen.
//
// A tile of rays marches together, a few intervals at a time: their middles are encoded and go through the density
// network while all of it is in the second-level cache, and rays that have no light left stop. Most rays end at a surface
// within their first intervals; the further ones go, the fewer they are and the more intervals each may take at a time.
// The result does not depend on threads or timing.
#pragma once
#include "march_rays.h"
#include "radiance_layers.h"

#if !PF_CUDA

namespace polyfield {

constexpr int RAYS = RAY_TILE, LEAST = 8, MOST = 64, BATCH = RAYS * LEAST;  // rays of a tile; intervals of a ray, of a tile at a time
constexpr int64_t EXPECTED = 32;                                            // intervals of a ray in all, about
constexpr size_t KEPT = 1 << 17;                                            // intervals of a tile whose room is kept for the next call

// Rays of a tile, of so many in all: at least four tiles, so that more threads have some.
inline int64_t tile_size(int64_t rays) {
  const int64_t quarter = ceil_div(ceil_div(rays, 4), 16) * 16;
  return quarter < RAYS ? (quarter > 0 ? quarter : 16) : RAYS;
}

// Room for so many more numbers.
inline float* more(Scratch<float>& room, size_t count) {
  room.resize(room.size() + count);
  return room.data() + room.size() - count;
}

// What one tile of rays met: pieces, each the next few intervals of one ray; and what the field said of those that are seen.
struct Met {
  struct Piece { int32_t ray, count; };
  std::vector<Piece> pieces;
  std::vector<float> t_starts, t_ends, sigmas;
  std::vector<uint8_t> seen;
  Scratch<float> features, geometry;
  void clear() { pieces.clear(), t_starts.clear(), t_ends.clear(), sigmas.clear(), seen.clear(), features.clear(), geometry.clear(); }
};
// Kept between radiance_march and radiance_march_write, which the same thread calls one after the other.
inline std::vector<Met>& met() {
  static thread_local std::vector<Met> m;
  return m;
}

namespace {

struct Way {
  const float *origins, *directions, *near, *far, *jitter;
  Grid grid;
  Steps steps;
  const float* box;  // scale, then offset: of the world to the field's unit cube
  float min_transmittance, min_alpha;
};

// A tile's rays, their light, and the next intervals of each.
struct Walk {
  RayTile rays;
  float light[RAYS];
  int32_t counts[RAYS], at[RAYS], next[RAYS];
  float starts[RAYS];  // of the rays' sequences
  int hits;
  std::vector<Run> runs;
  alignas(64) float t_starts[BATCH + LANES], t_ends[BATCH + LANES], points[3 * BATCH];
  int count;

  // The next `most` intervals of every ray -> t_starts, t_ends, points; of ray r, counts[r] from at[r] on
  void advance(const Way& way, const Marching& marching, const float* origins, const float* directions, int most) {
    using F = Lane<float>;
    std::fill(counts, counts + RAYS, 0);
    runs.clear();
    marching.march(rays, hits, way.steps, way.grid, most, counts, runs);
    count = 0;
    int32_t cursor[RAYS];
    for (int j = 0; j < hits; ++j) {
      const int r = rays.ray[j];
      at[r] = cursor[r] = count, count += counts[r], next[r] = 0;
    }
    for (const Run& run : runs) {
      const int n = run.k1 - run.k0, to = cursor[run.ray];
      cursor[run.ray] += n, next[run.ray] = run.k1;
      F k = F(float(run.k0)) + iota<float>();
      for (int j = 0; j < n; j += LANES, k += F(float(LANES))) {
        F t0, t1;
        interval(way.steps, way.steps.cone > 0, F(starts[run.ray]), k, t0, t1);
        store_n(t_starts + to + j, t0, n - j);
        store_n(t_ends + to + j, t1, n - j);
      }
      const float *o = origins + 3 * run.ray, *d = directions + 3 * run.ray;
      for (int j = to; j < to + n; ++j)
        for (int a = 0; a < 3; ++a) points[3 * j + a] = (o[a] + d[a] * (0.5f * (t_starts[j] + t_ends[j]))) * way.box[a] + way.box[3 + a];
    }
  }

  // Takes down what was met, and goes on with the rays that had `most` intervals and still have light.
  void take_down(const Way& way, const float* sigmas, int most, Met& met, int32_t* of_ray, int32_t* seen_of_ray) {
    using F = Lane<float>;
    alignas(64) float through[BATCH + LANES];
    for (int i = 0; i < count; i += LANES)
      store(through + i, exp((load(t_starts + i) - load(t_ends + i)) * load_n(sigmas + i, count - i)));
    met.t_starts.insert(met.t_starts.end(), t_starts, t_starts + count);
    met.t_ends.insert(met.t_ends.end(), t_ends, t_ends + count);
    met.sigmas.insert(met.sigmas.end(), sigmas, sigmas + count);
    int kept = 0;
    met.seen.resize(met.seen.size() + count);
    uint8_t* seen = met.seen.data() + met.seen.size() - count;
    for (int j = 0; j < hits; ++j) {
      const int r = rays.ray[j];
      for (int i = at[r]; i < at[r] + counts[r]; ++i) {
        const bool sees = light[r] >= way.min_transmittance && 1 - through[i] >= way.min_alpha;
        seen[i] = sees;
        seen_of_ray[r] += sees;
        light[r] *= through[i];
      }
      of_ray[r] += counts[r];
      if (counts[r]) met.pieces.push_back({r, counts[r]});
      if (counts[r] < most || !(light[r] >= way.min_transmittance)) continue;
      for (int f = 0; f < FIELDS; ++f) rays.f[f][kept] = rays.f[f][j];
      rays.f[K][kept] = float(next[r]);
      rays.ray[kept++] = r;
    }
    hits = kept;
  }
};

// Keeps the features and the density network's outputs, `columns` of them, of the last `count` intervals that are seen.
template <int F>
void keep_found(Met& met, const float* features, int level_count, const float* geometry, int columns, int count) {
  const uint8_t* seen = met.seen.data() + met.seen.size() - count;
  int most = 0;
  for (int i = 0; i < count; ++i) most += seen[i];
  float *h = more(met.features, size_t(most) * level_count * F), *g = more(met.geometry, size_t(most) * columns);
  for (int i = 0; i < count; ++i) {
    if (!seen[i]) continue;
    for (int l = 0; l < level_count; ++l, h += F) std::memcpy(h, features + (int64_t(l) * count + i) * F, F * sizeof(float));
    std::memcpy(g, geometry + int64_t(i) * columns, columns * sizeof(float));
    g += columns;
  }
}

template <class P, int F, class H>
void march_radiance(const Way& way, const Parameters<float>& parameters, const Level* levels, int level_count, const H* table,
                    int64_t rays, bool keep, int32_t* ray_offsets, int32_t* seen_offsets) {
  const int columns = parameters.dims[parameters.layers];
  const Net<P> net(parameters, false, fresh_arena<Use::CALL>());
  const Marching marching(way.steps.cone > 0, way.grid.cascades > 1);
  const int64_t size = tile_size(rays), tiles = ceil_div(rays, size);
  std::vector<Met>& all = met();
  if (int64_t(all.size()) < tiles) all.resize(tiles);
  std::fill(ray_offsets, ray_offsets + rays + 1, 0);
  std::fill(seen_offsets, seen_offsets + rays + 1, 0);
  parallel_pieces(tiles, [&](int64_t i) {
    const int64_t begin = i * size, n = rays - begin < size ? rays - begin : size;
    Arena& arena = fresh_arena<Use::TILE>();
    float *features = arena.take<float>(BATCH * level_count * F), *rows = arena.take<float>(TILE * level_count * F);
    float *outputs = arena.take<float>(BATCH * columns), *sigmas = arena.take<float>(BATCH);
    Forward<P> pass{net, rows, outputs, Saved<P>{nullptr, net.layers, 0}, 0};
    pass.take_scratch(arena);
    static thread_local Walk walk;
    const float *o = way.origins + 3 * begin, *d = way.directions + 3 * begin;
    walk.hits = marching.load(walk.rays, way.steps, way.grid, o, d, way.near + begin, way.far + begin, way.jitter ? way.jitter + begin : nullptr, 0, n);
    for (int j = 0; j < walk.hits; ++j) walk.starts[walk.rays.ray[j]] = walk.rays.f[START][j];
    std::fill(walk.light, walk.light + RAYS, 1.0f);
    Met& found = all[i];
    found.clear();
    int64_t warming = i < thread_count() ? EXPECTED * rays : 0;  // once by each thread: what another one fetched may be far away
    while (walk.hits) {
      const int share = int(size) * LEAST / walk.hits, most = share < MOST ? share : MOST;
      walk.advance(way, marching, o, d, most);
      const int64_t count = walk.count;
      encode_few<3, F>(walk.points, table, levels, level_count, features, count,
                       [&](int l) { warm<3>(table + levels[l].offset * F, levels[l].size * F, warming, 0, warming); });
      warming = 0;
      for (int64_t at = 0; at < count; at += TILE) {
        const int64_t m = count - at < TILE ? count - at : TILE;
        gather_levels<F>(features, level_count, count, at, rows, m);
        pass.outputs = outputs + at * columns;
        pass.tile(0, m);
      }
      for (int at = 0; at < walk.count; at += LANES) {
        const int k = walk.count - at < LANES ? walk.count - at : LANES;
        store_first(sigmas + at, density_of(load_strided(outputs + at * columns, columns, k)), k);
      }
      walk.take_down(way, sigmas, most, found, ray_offsets + begin, seen_offsets + begin);
      if (keep) keep_found<F>(found, features, level_count, outputs, columns, int(count));
    }
  });
}

// Which intervals rays meet and how many can be seen: offsets (rays + 1) of both, and their numbers in totals[0] and [1].
// keep: what the field says of those that are seen is kept for radiance_march_write.
template <class P, class H>
void radiance_march(const float* origins, const float* directions, const float* near, const float* far, const float* jitter, const int64_t* bits_,
                    const uint8_t* states, int64_t rays, int64_t resolution, int64_t cascades, float half, float step, float cone, float longest,
                    float min_transmittance, float min_alpha, const float* box, const H* table, const int64_t* levels, int level_count, int features_per_level,
                    int rounded, int layers, int d0, int d1, int d2, int d3, int d4, int d5, const float* w0, const float* w1, const float* w2,
                    const float* w3, const float* w4, int keep, int32_t* ray_offsets, int32_t* seen_offsets, int64_t* totals) {
  const Way way{origins, directions, near, far, jitter, Grid(bits_, states, int(resolution), int(cascades), half), Steps(step, cone, longest), box, min_transmittance, min_alpha};
  Parameters<float> parameters{layers, {d0, d1, d2, d3, d4, d5}, {w0, w1, w2, w3, w4}, {}, rounded != 0};
  if (!keep) parameters.dims[layers] = 1;  // the log-density alone
  with_features(features_per_level, [&](auto f) {
    march_radiance<P, f>(way, parameters, (const Level*)levels, level_count, table, rays, keep != 0, ray_offsets, seen_offsets);
  });
  prefix(ray_offsets, rays, totals);
  prefix(seen_offsets, rays, totals + 1);
}

}  // namespace

// Expands what the last radiance_march met: all intervals with their densities, and those that can be seen; of these, if it
// was told to keep them, features (channels each) and the density network's outputs (columns each).
inline void radiance_march_write(const int32_t* ray_offsets, const int32_t* seen_offsets, float* t_starts, float* t_ends, int32_t* ray_indices,
                                 float* sigmas, float* seen_starts, float* seen_ends, int32_t* seen_indices, float* features, float* geometry,
                                 int channels, int columns, int64_t rays) {
  std::vector<Met>& kept = met();
  const int64_t size = tile_size(rays);
  parallel_pieces(ceil_div(rays, size), [&](int64_t i) {
    int32_t cursor[RAYS], seen_cursor[RAYS];
    const int64_t begin = i * size, end = rays < begin + size ? rays : begin + size;
    std::copy(ray_offsets + begin, ray_offsets + end, cursor);
    std::copy(seen_offsets + begin, seen_offsets + end, seen_cursor);
    const float *h = kept[i].features.data(), *g = kept[i].geometry.data();
    int64_t from = 0;
    for (const Met::Piece& piece : kept[i].pieces) {
      int32_t& at = cursor[piece.ray];
      int32_t& seen_at = seen_cursor[piece.ray];
      for (const int64_t upto = from + piece.count; from < upto; ++from, ++at) {
        t_starts[at] = kept[i].t_starts[from], t_ends[at] = kept[i].t_ends[from];
        sigmas[at] = kept[i].sigmas[from], ray_indices[at] = int32_t(begin + piece.ray);
        if (!kept[i].seen[from]) continue;
        seen_starts[seen_at] = t_starts[at], seen_ends[seen_at] = t_ends[at], seen_indices[seen_at] = ray_indices[at];
        if (features) {
          std::memcpy(features + int64_t(seen_at) * channels, h, channels * sizeof(float)), h += channels;
          std::memcpy(geometry + int64_t(seen_at) * columns, g, columns * sizeof(float)), g += columns;
        }
        ++seen_at;
      }
    }
    if (kept[i].sigmas.capacity() > KEPT) kept[i] = Met();  // what fog took
  });
}

}  // namespace polyfield

#endif
