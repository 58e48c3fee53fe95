// Blending of sorted Gaussians into tiles, front to back (Kerbl et al., "3D Gaussian Splatting", 2023):
//
//   w_i = alpha_i T_i,   T_{i+1} = T_i (1 - alpha_i),   image = sum_i w_i c_i + T background,   alpha image = 1 - T.
//
// Backward runs front to back too, with what is left to come, L_i = g (image - sum_{j<=i} w_j c_j), g the image's gradient:
//   d loss / d alpha_i = T_i g c_i - L_i / (1 - alpha_i).
// The trick: pixels in lanes, Gaussians in the outer loop over a tile whose colours and transmittances stay in the
// first-level cache; of 16 cells only those that an ellipse meets and that are not yet opaque. What a Gaussian's gradient
// needs of a tile are moments of v = alpha d loss / d alpha: kept in registers over the tile, summed across lanes once.
#include "op.h"
#include "splat_tile.h"
#include <vector>

namespace polyfield {

constexpr int AHEAD = 6;  // entries whose rows are fetched before they are needed

// Per Gaussian its n channels at channels + stride * number; those that lack to N are zero.
template <class T> struct Channels {
  const T* channels;
  int64_t stride;
  int n;
};

template <class T> struct Scene {
  const T* rows;
  const int64_t *entries, *tile_offsets;
  const int32_t* slot_gaussian;
  int width, height;
  Channels<T> channels;
};

// f(slot, number of a Gaussian, its splat, cells) for a tile's entries until nothing is live.
template <class T, class F> PF_INLINE void for_entries(const Scene<T>& s, const Window& w, int64_t tile, const uint32_t& live, F f) {
  const int64_t end = s.tile_offsets[tile + 1];
  for (int64_t e = s.tile_offsets[tile]; e < end && live; ++e) {
    if (e + AHEAD < end) __builtin_prefetch(s.rows + ROW * int64_t(s.slot_gaussian[int32_t(s.entries[e + AHEAD])]));
    const int64_t slot = int32_t(s.entries[e]), gaussian = s.slot_gaussian[slot];
    f(slot, gaussian, Splat<T>(s.rows + ROW * gaussian, w), uint32_t(s.entries[e] >> 32) & live);
  }
}

template <class T> PF_INLINE uint32_t cells_inside(const Window& w) {
  uint32_t cells = 0;
  for (int k = 0; k < CELLS; ++k) cells |= uint32_t(k % CELL * CELL < w.columns && k / CELL * CELL < w.rows) << k;
  return cells;
}

template <class T, int N, bool MEDIAN, bool SMOOTH>
void blend_tile(const Scene<T>& s, int64_t tile, const Planes<T>& images, const T* background, T* alphas, T* medians) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  alignas(64) T transmittance[PIXELS], image[N][PIXELS], median[MEDIAN ? PIXELS : 1];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1);
  for (int c = 0; c < N; ++c)
    for (int i = 0; i < PIXELS; ++i) image[c][i] = T(0);
  if (MEDIAN)
    for (int i = 0; i < PIXELS; ++i) median[i] = T(0);
  uint32_t live = cells_inside<T>(w);
  for_entries(s, w, tile, live, [&](int64_t, int64_t gaussian, const Splat<T>& splat, uint32_t cells) {
    R value[N];
    for (int c = 0; c < N; ++c) value[c] = R(c < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + c] : T(0));
    for (; cells; cells &= cells - 1) {
      const int cell = lowest(cells);
      bool alive = false;
      for (int v = 0; v < VECTORS; ++v) {
        const int i = CELLS * cell + LANES * v;
        R slope;
        const R before = load(transmittance + i);
        const auto open = before >= R(T(MIN_TRANSMITTANCE));
        const R alpha = splat.template alpha<SMOOTH>(load(at.x + i) - R(splat.x), load(at.y + i) - R(splat.y), slope);
        const R weight = select(open, alpha * before, R(T(0))), after = before - weight;
        for (int c = 0; c < N; ++c) store(image[c] + i, load(image[c] + i) + weight * value[c]);
        store(transmittance + i, after);
        if (MEDIAN) {
          const R depth(s.rows[ROW * gaussian + DEPTH]);
          store(median + i, select((before > R(T(0.5))) & (after <= R(T(0.5))), depth, load(median + i)));
        }
        alive |= any(open);
      }
      if (!alive) live &= ~(1u << cell);
    }
  });
  for (int c = 0; c < N; ++c) {
    if (background && c < 3)
      for (int i = 0; i < PIXELS; ++i) image[c][i] += transmittance[i] * background[c];
    write_plane(w, image[c], images.of[c]);
  }
  if (alphas) {
    for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1) - transmittance[i];
    write_plane(w, transmittance, Plane<T>{alphas, 0, 1});
  }
  if (MEDIAN) write_plane(w, median, Plane<T>{medians, 0, 1});
}

template <class T>
void splat_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, int64_t tiles, int width, int height, const T* channels,
                 int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas, T* medians, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const auto run = [&](auto blend) { parallel_pieces(tiles, [&](int64_t tile) { blend(s, tile, images.value, background, alphas, medians); }); };
  if (std::is_same_v<T, double> && smooth) run(blend_tile<T, 4, true, std::is_same_v<T, double>>);
  else if (medians) run(blend_tile<T, 4, true, false>);
  else if (n <= 3) run(blend_tile<T, 3, false, false>);
  else run(blend_tile<T, 4, false, false>);
}

// ---- backward ---------------------------------------------------------------------------------------------------
template <class T> struct Upstream {
  Planes<T> images, grad_images;  // what was drawn, over its background, and its gradient
  const T *alphas, *grad_alphas;
  T* slots;
};

template <class T, int N, bool SMOOTH> void blend_tile_backward(const Scene<T>& s, int64_t tile, const Upstream<T>& up) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  alignas(64) T transmittance[PIXELS], rest[PIXELS], grad[N][PIXELS], scratch[PIXELS];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1), rest[i] = T(0);
  if (up.grad_alphas) {  // alpha grows by T / (1 - alpha_i): as if an image of -T were left to come
    w.for_pixels([&](int i, int64_t p) { rest[i] = up.grad_alphas[p] * (up.alphas[p] - T(1)); });
  }
  for (int c = 0; c < N; ++c) {
    read_plane(w, up.grad_images.of[c], grad[c]);
    if (!up.grad_images.of[c].image) continue;
    read_plane(w, up.images.of[c], scratch);
    for (int i = 0; i < PIXELS; ++i) rest[i] += grad[c][i] * scratch[i];
  }
  uint32_t live = cells_inside<T>(w);
  for_entries(s, w, tile, live, [&](int64_t slot, int64_t gaussian, const Splat<T>& splat, uint32_t cells) {
    if (!cells) return;
    const T* row = s.rows + ROW * gaussian;
    const R a(row[CONIC]), b(row[CONIC + 1]), c(row[CONIC + 2]);
    const R zero(T(0));
    R value[N], sums[N];  // and the moments, each a name of its own, so that all stay in registers
    for (int k = 0; k < N; ++k) sums[k] = zero, value[k] = R(k < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + k] : T(0));
    R m_v = zero, m_x = zero, m_y = zero, m_xx = zero, m_xy = zero, m_yy = zero, abs_x = zero, abs_y = zero;
    for (; cells; cells &= cells - 1) {
      const int cell = lowest(cells);
      bool alive = false;
      for (int v = 0; v < VECTORS; ++v) {
        const int i = CELLS * cell + LANES * v;
        R slope;
        const R before = load(transmittance + i);
        const auto open = before >= R(T(MIN_TRANSMITTANCE));
        const R dx = load(at.x + i) - R(splat.x), dy = load(at.y + i) - R(splat.y);
        const R alpha = splat.template alpha<SMOOTH>(dx, dy, slope);
        const R weight = select(open, alpha * before, R(T(0)));
        R seen(T(0));
        for (int k = 0; k < N; ++k) {
          const R g = load(grad[k] + i);
          seen += g * value[k];
          sums[k] += weight * g;
        }
        const R left = load(rest + i) - weight * seen;
        store(rest + i, left);
        store(transmittance + i, before - weight);
        const R v_ = select(open, slope * (before * seen - left / (R(T(1)) - alpha)), R(T(0)));
        const R vx = v_ * dx, vy = v_ * dy;
        m_v += v_, m_x += vx, m_y += vy, m_xx += vx * dx, m_xy += vx * dy, m_yy += vy * dy;
        abs_x += magnitude(a * vx + b * vy), abs_y += magnitude(b * vx + c * vy);
        alive |= any(open);
      }
      if (!alive) live &= ~(1u << cell);
    }
    R m[ROW] = {m_v, m_x, m_y, m_xx, m_xy, m_yy, abs_x, abs_y, sums[0], sums[1], sums[2], N > 3 ? sums[N - 1] : zero, zero, zero, zero, zero};
    add_sums(up.slots + ROW * slot, m);
  });
}

template <class T>
void splat_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, int width, int height, const T* channels,
                          int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, T* slots,
                          const int64_t* band_offsets, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const Upstream<T> up{images.value, grad_images.value, alphas, grad_alphas, slots};
  const int64_t tiles_x = ceil_div(width, TILE), tiles = tiles_x * ceil_div(height, TILE), band = tiles_x * BAND;
  const auto run = [&](auto blend) {
    parallel_pieces(ceil_div(tiles, band), [&](int64_t b) {
      std::memset(slots + ROW * band_offsets[b], 0, ROW * (band_offsets[b + 1] - band_offsets[b]) * sizeof(T));
      for (int64_t tile = b * band; tile < tiles && tile < (b + 1) * band; ++tile) blend(s, tile, up);
    });
  };
  if (std::is_same_v<T, double> && smooth) run(blend_tile_backward<T, 4, std::is_same_v<T, double>>);
  else if (n <= 3) run(blend_tile_backward<T, 3, false>);
  else run(blend_tile_backward<T, 4, false>);
}

// Sums over bands -> gradients to rows (added if `add`) and to channels beyond colour and depth.
template <class T>
void splat_gather(const T* rows, const T* slots, const int32_t* slot_gaussian, const int64_t* band_offsets, int bands, int64_t gaussians, T* grad_rows,
                  int add, T* grad_channels, int64_t first, int64_t stride, int n) {
  parallel_chunks(gaussians, CHUNK, [=](int64_t begin, int64_t end) {
    static thread_local std::vector<T> gathered(CHUNK * ROW);
    sum_slots(slots, slot_gaussian, band_offsets, bands, begin, end, gathered.data());
    for (int64_t i = begin; i < end; ++i) {
      const T *row = rows + ROW * i, *moments = gathered.data() + ROW * (i - begin);
      T g[ROW] = {}, *grad = grad_rows + ROW * i;
      if (row[EXTENT] > T(0)) row_gradient(row[CONIC], row[CONIC + 1], row[CONIC + 2], row[OPACITY], moments, g);
      const int own = grad_channels ? COLOR : DEPTH + 1;
      for (int k = 0; k < ROW; ++k) grad[k] = (add ? grad[k] : T(0)) + (k < own ? g[k] : T(0));
      if (grad_channels)
        for (int k = 0; k < n; ++k) grad_channels[first + stride * i + k] = g[COLOR + k];
    }
  });
}

POLYFIELD_OP(splat_blend_f32, splat_blend<float>)
POLYFIELD_OP(splat_blend_f64, splat_blend<double>)
POLYFIELD_OP(splat_blend_backward_f32, splat_blend_backward<float>)
POLYFIELD_OP(splat_blend_backward_f64, splat_blend_backward<double>)
POLYFIELD_OP(splat_gather_f32, splat_gather<float>)
POLYFIELD_OP(splat_gather_f64, splat_gather<double>)

}  // namespace polyfield
