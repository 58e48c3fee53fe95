// Blending of sorted surfels into tiles, front to back (Huang et al., "2D Gaussian Splatting", 2024): as splat_blend.cu, but each
// pixel meets a disc where its own ray does (surfel_tile.h), and so at a depth z_i of its own:
//
//   depth = sum_i w_i z_i,   median = the z_i at which T falls to 1/2,   distortion = sum_{i<j} w_i w_j (m_i - m_j)^2,
//
// m = -scale / z. With A = sum_i w_i, M = sum_i w_i m_i / A and V = sum_i w_i (m_i - M)^2 the distortion is A V, and backward needs
// no sums over pairs:  d / d w_i = A (m_i - M)^2 + V,  d / d m_i = 2 w_i A (m_i - M).
#include "splat_blending.h"
#include "surfel_tile.h"

namespace polyfield {

constexpr int DRAWN = 3;  // channels at a time

// What is drawn of depths, each (H, W); middles: M, which backward needs. 0 = not wanted.
template <class T> struct DepthMaps {
  T *depths, *medians, *distortions, *middles;
  PF_INLINE bool any() const { return depths || medians || distortions; }
};

template <class T> struct SurfelUpstream {
  Planes<T> images, grad_images;  // what was drawn, over its background, and its gradient
  DepthMaps<T> maps, grad_maps;
  const T *alphas, *grad_alphas;
  T* slots;
};

// What backward begins with at pixel p of the image: gradients of depths, and of all that is left to come but the channels.
template <class T> PF_INLINE T begin_pixel(const SurfelUpstream<T>& up, int64_t p, DepthGradients<T>& g) {
  const T alpha = up.alphas[p], distorted = up.grad_maps.distortions ? up.grad_maps.distortions[p] : T(0);
  g.sum = up.grad_maps.depths ? up.grad_maps.depths[p] : T(0);
  g.median = up.grad_maps.medians ? up.grad_maps.medians[p] : T(0);
  g.taken = distorted * alpha, g.spread = T(0), g.middle = T(0);
  T rest = up.grad_alphas ? up.grad_alphas[p] * (alpha - T(1)) : T(0);  // as if an image of -T were left to come
  if (up.grad_maps.depths) rest += g.sum * up.maps.depths[p];
  if (up.grad_maps.distortions) {
    const T distortion = up.maps.distortions[p];
    g.spread = alpha > T(0) ? distorted * distortion / alpha : T(0), g.middle = up.maps.middles[p];
    rest += T(2) * distorted * distortion;
  }
  return rest;
}

// f(whether depths are wanted, whether the cutoff is smooth), as types
template <class T, class F> PF_INLINE void choose(bool deep, bool smooth, F f) {
  if (std::is_same_v<T, double> && smooth) f(Number<1>(), Number<std::is_same_v<T, double>>());
  else if (deep) f(Number<1>(), Number<0>());
  else f(Number<0>(), Number<0>());
}

#if PF_CUDA

template <class T, bool DEEP, bool SMOOTH>
PF_INLINE void blend_tile(Batch<T, Surfel<T>>& batch, const Scene<T>& s, const Depthwise<T>& to, int64_t tile, const Planes<T>& images, const T* background, T* alphas,
                          const DepthMaps<T>& maps) {
  const Window w(tile, s.width, s.height);
  const Pixel<T> pixel(w);
  T transmittance = pixel.at >= 0 ? T(1) : T(0), image[DRAWN] = {};
  Depths<T> depths{T(0), T(0), T(0), T(0), T(0)};
  batch.for_groups(s, w, tile, transmittance, [&](int first, int, uint32_t wanted) {
    for (; wanted; wanted &= wanted - 1) {
      const int i = first + lowest(wanted);
      if (!(batch.cells[i] >> pixel.cell & 1)) continue;
      const Surfel<T>& surfel = batch.splats[i];
      const Hit<T> hit = Hit<T>::template of<SMOOTH>(surfel, pixel.x - surfel.x, pixel.y - surfel.y, to.near);
      bool open;
      const T before = transmittance, weight = absorb(hit.alpha, transmittance, open);
      for (int c = 0; c < DRAWN; ++c) image[c] += weight * batch.values[i][c];
      if (DEEP) depths.add(hit.z, -to.scale / hit.z, weight, before, transmittance);
    }
  });
  if (pixel.at < 0) return;
  for (int c = 0; c < DRAWN; ++c) {
    if (background) image[c] += transmittance * background[c];
    const Plane<T>& plane = images.of[c];
    if (plane.image) plane.image[plane.offset + pixel.at * plane.stride] = image[c];
  }
  if (alphas) alphas[pixel.at] = T(1) - transmittance;
  if (!DEEP) return;
  if (maps.depths) maps.depths[pixel.at] = depths.sum;
  if (maps.medians) maps.medians[pixel.at] = depths.median;
  if (maps.distortions) maps.distortions[pixel.at] = depths.taken * depths.spread, maps.middles[pixel.at] = depths.middle;
}

template <class T, bool DEEP, bool SMOOTH>
PF_INLINE void blend_tile_backward(Batch<T, Surfel<T>>& batch, Parts<T>& parts, const Scene<T>& s, const Depthwise<T>& to, int64_t tile, const SurfelUpstream<T>& up) {
  const Window w(tile, s.width, s.height);
  const Pixel<T> pixel(w);
  const int warp = int(threadIdx.x) / GROUP, lane = lane_number();
  T transmittance(0), rest(0), grad[DRAWN];
  DepthGradients<T> deep{T(0), T(0), T(0), T(0), T(0)};
  if (pixel.at >= 0) transmittance = T(1), rest = begin_pixel(up, pixel.at, deep);
  for (int c = 0; c < DRAWN; ++c) {
    grad[c] = pixel.read(up.grad_images.of[c]);
    if (up.grad_images.of[c].image) rest += grad[c] * pixel.read(up.images.of[c]);
  }
  const int64_t stopped = batch.for_groups(s, w, tile, transmittance, [&](int first, int n, uint32_t wanted) {
    for (uint32_t left = wanted; left; left &= left - 1) {
      const int e = lowest(left), i = first + e;
      const Surfel<T>& surfel = batch.splats[i];
      SurfelMoments<T, DEEP> moments;
      if (batch.cells[i] >> pixel.cell & 1)
        moments.template add<SMOOTH>(surfel, to, pixel.x - surfel.x, pixel.y - surfel.y, batch.values[i], grad, deep, transmittance, rest);
      T m[ROW];
      moments.list(m);
      const T sum = lane_sums(m);
      if (lane < ROW) parts.of[warp][e][lane] = sum;
    }
    if (lane == 0) parts.looked[warp] = wanted;
    __syncthreads();
    store_parts(parts, batch, first, n, up.slots);
    __syncthreads();
  });
  clear_slots(s, tile, stopped, up.slots);
}

template <class T>
void surfel_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width, int height,
                  const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas,
                  const Inline<DepthMaps<T>>& maps, T near, T scale, int smooth) {
  using Entries = Batch<T, Surfel<T>>;
  PF_SHARED(Entries, batch, [1]);
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  for_each(tiles, [&](int64_t tile) {
    choose<T>(maps.value.any(), smooth, [&](auto DEEP, auto SMOOTH) {
      blend_tile<T, decltype(DEEP)::value, decltype(SMOOTH)::value>(batch[0], s, {near, scale}, tile, images.value, background, alphas, maps.value);
    });
  });
}

template <class T>
void surfel_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width,
                           int height, const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images,
                           const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, const Inline<DepthMaps<T>>& maps,
                           const Inline<DepthMaps<T>>& grad_maps, T near, T scale, T* slots, const int64_t*, int smooth) {
  using Entries = Batch<T, Surfel<T>>;
  PF_SHARED(Entries, batch, [1]);
  PF_SHARED(Parts<T>, parts, [1]);
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const SurfelUpstream<T> up{images.value, grad_images.value, maps.value, grad_maps.value, alphas, grad_alphas, slots};
  for_each(tiles, [&](int64_t tile) {
    choose<T>(grad_maps.value.any(), smooth, [&](auto DEEP, auto SMOOTH) {
      blend_tile_backward<T, decltype(DEEP)::value, decltype(SMOOTH)::value>(batch[0], parts[0], s, {near, scale}, tile, up);
    });
  });
}

#else

// A tile's depths while surfels are blended into it.
template <class T> struct TileDepths {
  alignas(64) T sum[PIXELS], median[PIXELS], taken[PIXELS], middle[PIXELS], spread[PIXELS];
  TileDepths() {
    for (int i = 0; i < PIXELS; ++i) sum[i] = median[i] = taken[i] = middle[i] = spread[i] = T(0);
  }
  PF_INLINE void add(int i, Lane<T> z, Lane<T> mapped, Lane<T> weight, Lane<T> before, Lane<T> after) {
    Depths<Lane<T>> d{load(sum + i), load(median + i), load(taken + i), load(middle + i), load(spread + i)};
    d.add(z, mapped, weight, before, after);
    store(sum + i, d.sum), store(median + i, d.median), store(taken + i, d.taken), store(middle + i, d.middle), store(spread + i, d.spread);
  }
  void write(const Window& w, const DepthMaps<T>& maps) {
    for (int i = 0; i < PIXELS; ++i) spread[i] *= taken[i];
    const T* from[4] = {sum, median, spread, middle};
    T* to[4] = {maps.depths, maps.medians, maps.distortions, maps.middles};
    for (int k = 0; k < 4; ++k) write_plane(w, from[k], Plane<T>{to[k], 0, 1});
  }
};

template <class T, bool DEEP, bool SMOOTH>
void blend_tile(const Scene<T>& s, const Depthwise<T>& to, int64_t tile, const Planes<T>& images, const T* background, T* alphas, const DepthMaps<T>& maps) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  fetch_planes<true>(w, images.of, DRAWN);
  alignas(64) T transmittance[PIXELS], image[DRAWN][PIXELS];
  std::conditional_t<DEEP, TileDepths<T>, Number<0>> depths;
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1);
  for (int c = 0; c < DRAWN; ++c)
    for (int i = 0; i < PIXELS; ++i) image[c][i] = T(0);
  uint32_t live = cells_inside<T>(w);
  for_entries<Surfel<T>>(s, w, tile, live, [&](int64_t, int64_t gaussian, const Surfel<T>& surfel, uint32_t cells) {
    R value[DRAWN];
    for (int c = 0; c < DRAWN; ++c) value[c] = R(c < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + c] : T(0));
    for_vectors(cells, live, [&](int i) {
      const Hit<T> hit = Hit<T>::template of<SMOOTH>(surfel, load(at.x + i) - R(surfel.x), load(at.y + i) - R(surfel.y), to.near);
      Mask<T> open;
      R after = load(transmittance + i);
      const R before = after, weight = absorb(hit.alpha, after, open);
      for (int c = 0; c < DRAWN; ++c) store(image[c] + i, load(image[c] + i) + weight * value[c]);
      store(transmittance + i, after);
      if constexpr (DEEP) depths.add(i, hit.z, -R(to.scale) / hit.z, weight, before, after);
      return any(open);
    });
  });
  if constexpr (DEEP) depths.write(w, maps);
  for (int c = 0; c < DRAWN; ++c)
    for (int i = 0; background && i < PIXELS; ++i) image[c][i] += transmittance[i] * background[c];
  write_planes<DRAWN>(w, image, images);
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1) - transmittance[i];
  write_plane(w, transmittance, Plane<T>{alphas, 0, 1});
}

template <class T>
void surfel_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width, int height,
                  const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas,
                  const Inline<DepthMaps<T>>& maps, T near, T scale, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const TileOrder order(tiles, width);
  choose<T>(maps.value.any(), smooth, [&](auto DEEP, auto SMOOTH) {
    for_each(tiles, [&](int64_t i) {
      const int64_t tile = order(i);
      blend_tile<T, decltype(DEEP)::value, decltype(SMOOTH)::value>(s, {near, scale}, tile, images.value, background, alphas, maps.value);
    });
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------
template <class T, bool DEEP, bool SMOOTH> void blend_tile_backward(const Scene<T>& s, const Depthwise<T>& to, int64_t tile, int64_t next, const SurfelUpstream<T>& up) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  alignas(64) T transmittance[PIXELS], rest[PIXELS], grad[DRAWN][PIXELS], deep[5][DEEP ? PIXELS : 1];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1), rest[i] = T(0);
  for (int k = 0; k < 5; ++k)
    for (int i = 0; DEEP && i < PIXELS; ++i) deep[k][i] = T(0);
  w.for_pixels([&](int i, int64_t p) {
    DepthGradients<T> g;
    rest[i] = begin_pixel(up, p, g);
    if (DEEP) deep[0][i] = g.sum, deep[1][i] = g.median, deep[2][i] = g.taken, deep[3][i] = g.spread, deep[4][i] = g.middle;
  });
  read_gradients<DRAWN>(w, next, s.height, up.grad_images, up.images, grad, rest);
  uint32_t live = cells_inside<T>(w);
  for_entries<Surfel<T>>(s, w, tile, live, [&](int64_t slot, int64_t gaussian, const Surfel<T>& surfel, uint32_t cells) {
    if (!cells) return;
    R value[DRAWN];
    for (int k = 0; k < DRAWN; ++k) value[k] = R(k < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + k] : T(0));
    SurfelMoments<T, DEEP> moments;
    for_vectors(cells, live, [&](int i) {
      R g[DRAWN], light = load(transmittance + i), left = load(rest + i);
      for (int k = 0; k < DRAWN; ++k) g[k] = load(grad[k] + i);
      DepthGradients<R> d;
      if constexpr (DEEP) d = {load(deep[0] + i), load(deep[1] + i), load(deep[2] + i), load(deep[3] + i), load(deep[4] + i)};
      const Mask<T> open = moments.template add<SMOOTH>(surfel, to, load(at.x + i) - R(surfel.x), load(at.y + i) - R(surfel.y), value, g, d, light, left);
      store(transmittance + i, light), store(rest + i, left);
      return any(open);
    });
    R m[ROW];
    moments.list(m);
    add_sums(up.slots + ROW * slot, m);
  });
}

template <class T>
void surfel_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width,
                           int height, const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images,
                           const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, const Inline<DepthMaps<T>>& maps,
                           const Inline<DepthMaps<T>>& grad_maps, T near, T scale, T* slots, const int64_t* band_offsets, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const SurfelUpstream<T> up{images.value, grad_images.value, maps.value, grad_maps.value, alphas, grad_alphas, slots};
  choose<T>(grad_maps.value.any(), smooth, [&](auto DEEP, auto SMOOTH) {
    for_bands(tiles, width, slots, band_offsets,
              [&](int64_t tile, int64_t next) { blend_tile_backward<T, decltype(DEEP)::value, decltype(SMOOTH)::value>(s, {near, scale}, tile, next, up); });
  });
}

#endif

// Sums over slots -> gradients to rows, and to channels (see gather_slots).
template <class T>
void surfel_gather(const T* rows, const T* slots, const int32_t* slot_gaussian, const int64_t* slot_offsets, int bands, Threads<> gaussians, T* grad_rows,
                   int add, T* grad_channels, int64_t first, int64_t stride, int n_channels) {
  const Slots<T> blended{slots, slot_gaussian, slot_offsets, bands};
  gather_slots(rows, blended, gaussians, grad_rows, add, grad_channels, first, stride, n_channels, [](const Lane<T>* row, const Lane<T>* moments, Lane<T>* g) {
    for (int k = 0; k < ROW; ++k) g[k] = moments[k];
    g[OPACITY] = g[OPACITY] / row[OPACITY];
  });
}

POLYFIELD_OP(surfel_blend_f32, surfel_blend<float>)
POLYFIELD_OP(surfel_blend_f64, surfel_blend<double>)
POLYFIELD_OP(surfel_blend_backward_f32, surfel_blend_backward<float>)
POLYFIELD_OP(surfel_blend_backward_f64, surfel_blend_backward<double>)
POLYFIELD_OP(surfel_gather_f32, surfel_gather<float>)
POLYFIELD_OP(surfel_gather_f64, surfel_gather<double>)

}  // namespace polyfield
