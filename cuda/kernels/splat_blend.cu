// Blending of sorted Gaussians into tiles, front to back (Kerbl et al., "3D Gaussian Splatting", 2023):
//
//   w_i = alpha_i T_i,   T_{i+1} = T_i (1 - alpha_i),   image = sum_i w_i c_i + T background,   alpha image = 1 - T.
//
// Backward runs front to back too, with what is left to come, L_i = g (image - sum_{j<=i} w_j c_j), g the image's gradient:
//   d loss / d alpha_i = T_i g c_i - L_i / (1 - alpha_i).
// The trick: pixels in lanes, Gaussians in the outer loop over a tile whose colours and transmittances stay in the
// first-level cache; of 16 cells only those that an ellipse meets and that are not yet opaque. What a Gaussian's gradient
// needs of a tile are moments of v = alpha d loss / d alpha: kept in registers over the tile, summed across lanes once.
#include "splat_blending.h"

namespace polyfield {

template <class T> struct Upstream {
  Planes<T> images, grad_images;  // what was drawn, over its background, and its gradient
  const T *alphas, *grad_alphas;
  T* slots;
};

// f(channels at a time, whether medians are wanted, whether the cutoff is smooth), as types
template <class T, class F> PF_INLINE void choose(int n, bool medians, bool smooth, F f) {
  if (std::is_same_v<T, double> && smooth) f(Number<4>(), Number<1>(), Number<std::is_same_v<T, double>>());
  else if (medians) f(Number<4>(), Number<1>(), Number<0>());
  else if (n <= 3) f(Number<3>(), Number<0>(), Number<0>());
  else f(Number<4>(), Number<0>(), Number<0>());
}

#if PF_CUDA

template <class T> struct Listed : Splat<T> {
  T conic[3], depth;
  Listed() = default;
  PF_INLINE Listed(const T* row, const Window& w) : Splat<T>(row, w), conic{row[CONIC], row[CONIC + 1], row[CONIC + 2]}, depth(row[DEPTH]) {}
};

template <class T, int N, bool MEDIAN, bool SMOOTH>
PF_INLINE void blend_tile(Batch<T, Listed<T>>& batch, const Scene<T>& s, int64_t tile, const Planes<T>& images, const T* background, T* alphas, T* medians) {
  const Window w(tile, s.width, s.height);
  const Pixel<T> pixel(w);
  T transmittance = pixel.at >= 0 ? T(1) : T(0), image[N] = {}, median(0);
  batch.for_groups(s, w, tile, transmittance, [&](int first, int n, uint32_t wanted) {
    for (; wanted; wanted &= wanted - 1) {
      const int i = first + lowest(wanted);
      if (!(batch.cells[i] >> pixel.cell & 1)) continue;
      const Listed<T>& splat = batch.splats[i];
      T alpha, slope;
      bool open;
      const T before = transmittance, weight = take<SMOOTH, T>(splat, pixel.x - splat.x, pixel.y - splat.y, transmittance, open, alpha, slope);
      for (int c = 0; c < N; ++c) image[c] += weight * batch.values[i][c];
      if (MEDIAN && before > T(0.5) && transmittance <= T(0.5)) median = splat.depth;
    }
  });
  if (pixel.at < 0) return;
  for (int c = 0; c < N; ++c) {
    if (background && c < 3) image[c] += transmittance * background[c];
    const Plane<T>& to = images.of[c];
    if (to.image) to.image[to.offset + pixel.at * to.stride] = image[c];
  }
  if (alphas) alphas[pixel.at] = T(1) - transmittance;
  if (MEDIAN && medians) medians[pixel.at] = median;
}

template <class T, int N, bool SMOOTH>
PF_INLINE void blend_tile_backward(Batch<T, Listed<T>>& batch, Parts<T>& parts, const Scene<T>& s, int64_t tile, const Upstream<T>& up) {
  const Window w(tile, s.width, s.height);
  const Pixel<T> pixel(w);
  const int warp = int(threadIdx.x) / GROUP, lane = lane_number();
  T transmittance(0), rest(0), grad[N];
  if (pixel.at >= 0) {
    transmittance = T(1);
    if (up.grad_alphas) rest = up.grad_alphas[pixel.at] * (up.alphas[pixel.at] - T(1));
  }
  for (int c = 0; c < N; ++c) {
    grad[c] = pixel.read(up.grad_images.of[c]);
    if (up.grad_images.of[c].image) rest += grad[c] * pixel.read(up.images.of[c]);
  }
  const int64_t stopped = batch.for_groups(s, w, tile, transmittance, [&](int first, int n, uint32_t wanted) {
    for (uint32_t left = wanted; left; left &= left - 1) {
      const int e = lowest(left), i = first + e;
      const Listed<T>& splat = batch.splats[i];
      const T* conic = splat.conic;
      Moments<T, N> moments;
      if (batch.cells[i] >> pixel.cell & 1)
        moments.template add<SMOOTH>(splat, conic[0], conic[1], conic[2], pixel.x - splat.x, pixel.y - splat.y, batch.values[i], grad, transmittance, rest);
      T m[ROW];
      moments.list(m);
      const T sum = lane_sums<CHANNEL + N>(m);
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
void splat_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width, int height,
                 const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas, T* medians, int smooth) {
  using Entries = Batch<T, Listed<T>>;
  PF_SHARED(Entries, batch, [1]);
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  for_each(tiles, [&](int64_t tile) {
    choose<T>(n, medians, smooth, [&](auto N, auto MEDIAN, auto SMOOTH) {
      blend_tile<T, decltype(N)::value, decltype(MEDIAN)::value, decltype(SMOOTH)::value>(batch[0], s, tile, images.value, background, alphas, medians);
    });
  });
}

template <class T>
void splat_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width,
                          int height, const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images,
                          const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, T* slots, const int64_t*, int smooth) {
  using Entries = Batch<T, Listed<T>>;
  PF_SHARED(Entries, batch, [1]);
  PF_SHARED(Parts<T>, parts, [1]);
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const Upstream<T> up{images.value, grad_images.value, alphas, grad_alphas, slots};
  for_each(tiles, [&](int64_t tile) {
    choose<T>(n, false, smooth, [&](auto N, auto, auto SMOOTH) {
      blend_tile_backward<T, decltype(N)::value, decltype(SMOOTH)::value>(batch[0], parts[0], s, tile, up);
    });
  });
}

#else

template <class T, int N, bool MEDIAN, bool SMOOTH>
void blend_tile(const Scene<T>& s, int64_t tile, const Planes<T>& images, const T* background, T* alphas, T* medians) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  fetch_planes<true>(w, images.of, N);
  alignas(64) T transmittance[PIXELS], image[N][PIXELS], median[MEDIAN ? PIXELS : 1];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1);
  for (int c = 0; c < N; ++c)
    for (int i = 0; i < PIXELS; ++i) image[c][i] = T(0);
  if (MEDIAN)
    for (int i = 0; i < PIXELS; ++i) median[i] = T(0);
  uint32_t live = cells_inside<T>(w);
  for_entries<Splat<T>>(s, w, tile, live, [&](int64_t, int64_t gaussian, const Splat<T>& splat, uint32_t cells) {
    R value[N];
    for (int c = 0; c < N; ++c) value[c] = R(c < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + c] : T(0));
    for_vectors(cells, live, [&](int i) {
      R alpha, slope, after = load(transmittance + i);
      Mask<T> open;
      const R before = after, weight = take<SMOOTH>(splat, load(at.x + i) - R(splat.x), load(at.y + i) - R(splat.y), after, open, alpha, slope);
      for (int c = 0; c < N; ++c) store(image[c] + i, load(image[c] + i) + weight * value[c]);
      store(transmittance + i, after);
      if (MEDIAN) {
        const R depth(s.rows[ROW * gaussian + DEPTH]);
        store(median + i, select((before > R(T(0.5))) & (after <= R(T(0.5))), depth, load(median + i)));
      }
      return any(open);
    });
  });
  for (int c = 0; c < N && c < 3; ++c)
    for (int i = 0; background && i < PIXELS; ++i) image[c][i] += transmittance[i] * background[c];
  write_planes<N>(w, image, images);
  if (alphas) {
    for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1) - transmittance[i];
    write_plane(w, transmittance, Plane<T>{alphas, 0, 1});
  }
  if (MEDIAN) write_plane(w, median, Plane<T>{medians, 0, 1});
}

template <class T>
void splat_blend(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width, int height,
                 const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images, const T* background, T* alphas, T* medians, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const TileOrder order(tiles, width);
  choose<T>(n, medians, smooth, [&](auto N, auto MEDIAN, auto SMOOTH) {
    for_each(tiles, [&](int64_t i) {
      const int64_t tile = order(i);
      blend_tile<T, decltype(N)::value, decltype(MEDIAN)::value, decltype(SMOOTH)::value>(s, tile, images.value, background, alphas, medians);
    });
  });
}

// ---- backward ---------------------------------------------------------------------------------------------------
template <class T, int N, bool SMOOTH> void blend_tile_backward(const Scene<T>& s, int64_t tile, int64_t next, const Upstream<T>& up) {
  using R = Lane<T>;
  const Window w(tile, s.width, s.height);
  const Centers<T>& at = centers<T>();
  alignas(64) T transmittance[PIXELS], rest[PIXELS], grad[N][PIXELS];
  for (int i = 0; i < PIXELS; ++i) transmittance[i] = T(1), rest[i] = T(0);
  if (up.grad_alphas) {  // alpha grows by T / (1 - alpha_i): as if an image of -T were left to come
    w.for_pixels([&](int i, int64_t p) { rest[i] = up.grad_alphas[p] * (up.alphas[p] - T(1)); });
  }
  read_gradients<N>(w, next, s.height, up.grad_images, up.images, grad, rest);
  uint32_t live = cells_inside<T>(w);
  for_entries<Splat<T>>(s, w, tile, live, [&](int64_t slot, int64_t gaussian, const Splat<T>& splat, uint32_t cells) {
    if (!cells) return;
    const T* row = s.rows + ROW * gaussian;
    const R a(row[CONIC]), b(row[CONIC + 1]), c(row[CONIC + 2]);
    R value[N];
    for (int k = 0; k < N; ++k) value[k] = R(k < s.channels.n ? s.channels.channels[gaussian * s.channels.stride + k] : T(0));
    Moments<T, N> moments;
    for_vectors(cells, live, [&](int i) {
      R g[N], light = load(transmittance + i), left = load(rest + i);
      for (int k = 0; k < N; ++k) g[k] = load(grad[k] + i);
      const Mask<T> open =
          moments.template add<SMOOTH>(splat, a, b, c, load(at.x + i) - R(splat.x), load(at.y + i) - R(splat.y), value, g, light, left);
      store(transmittance + i, light), store(rest + i, left);
      return any(open);
    });
    R m[ROW];
    moments.list(m);
    add_sums(up.slots + ROW * slot, m);
  }, up.slots);
}

template <class T>
void splat_blend_backward(const T* rows, const int64_t* entries, const int64_t* tile_offsets, const int32_t* slot_gaussian, Blocks<PIXELS> tiles, int width,
                          int height, const T* channels, int64_t first, int64_t stride, int n, const Inline<Planes<T>>& images,
                          const Inline<Planes<T>>& grad_images, const T* alphas, const T* grad_alphas, T* slots, const int64_t* band_offsets, int smooth) {
  const Scene<T> s{rows, entries, tile_offsets, slot_gaussian, width, height, {channels + first, stride, n}};
  const Upstream<T> up{images.value, grad_images.value, alphas, grad_alphas, slots};
  choose<T>(n, false, smooth, [&](auto N, auto, auto SMOOTH) {
    for_bands(tiles, width, slots, band_offsets, [&](int64_t tile, int64_t next) { blend_tile_backward<T, decltype(N)::value, decltype(SMOOTH)::value>(s, tile, next, up); });
  });
}

#endif

template <class T>
void splat_gather(const T* rows, const T* slots, const int32_t* slot_gaussian, const int64_t* slot_offsets, int bands, Threads<> gaussians, T* grad_rows,
                  int add, T* grad_channels, int64_t first, int64_t stride, int n_channels) {
  const Slots<T> blended{slots, slot_gaussian, slot_offsets, bands};
  gather_slots(rows, blended, gaussians, grad_rows, add, grad_channels, first, stride, n_channels, [](const Lane<T>* row, const Lane<T>* moments, Lane<T>* g) {
    row_gradient(row[CONIC], row[CONIC + 1], row[CONIC + 2], row[OPACITY], moments, g);
    for (int k = DEPTH + 1; k < ROW; ++k) g[k] = Lane<T>(T(0));
  });
}

POLYFIELD_OP(splat_blend_f32, splat_blend<float>)
POLYFIELD_OP(splat_blend_f64, splat_blend<double>)
POLYFIELD_OP(splat_blend_backward_f32, splat_blend_backward<float>)
POLYFIELD_OP(splat_blend_backward_f64, splat_blend_backward<double>)
POLYFIELD_OP(splat_gather_f32, splat_gather<float>)
POLYFIELD_OP(splat_gather_f64, splat_gather<double>)

}  // namespace polyfield
