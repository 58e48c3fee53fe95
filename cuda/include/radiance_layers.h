// A hash-grid radiance field in one pass over tiles of samples, for either arithmetic of matmul.h:
//
//   h = encode(x);  g = density_network(h);  sigma = exp(min(g_0, 15));  c = sigmoid(colour_network(extras, g))
//
// What the separate ops would write out and read again (features as operands, the colour network's inputs, the hidden
// layers) stays in the second-level cache; kept for the backward pass are h, g and c, and the hidden layers are computed
// again, which costs less than reading them. Where the march that chose the points has found h and g (radiance_march.h),
// only the colours are left to do. Chunks and the order of sums are those of mlp_layers.h: the result does not depend on
// threads or timing.
#pragma once
#include "activations.h"
#include "hash_tile.h"
#include "mlp_layers.h"

namespace polyfield {
namespace {

#if !PF_CUDA

template <class T>
struct Radiance {
  const Level* levels;
  int level_count;
  Parameters<T> density, color;
  int channels() const { return density.dims[0]; }                      // of h
  int geometry() const { return density.dims[density.layers]; }         // of g
  int extras() const { return color.dims[0] - density.dims[density.layers]; }  // columns in front of g
};

// Rows [first, first + n) of features that lie level by level, (L, total, F), and back
template <int F, class T>
PF_INLINE void gather_levels(const T* levels, int level_count, int64_t total, int64_t first, T* rows, int64_t n) {
  for (int l = 0; l < level_count; ++l)
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(rows + (i * level_count + l) * F, levels + (l * total + first + i) * F, F * sizeof(T));
}
template <int F, class T>
PF_INLINE void scatter_rows(const T* rows, int level_count, int64_t total, int64_t first, T* levels, int64_t n) {
  for (int l = 0; l < level_count; ++l)
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(levels + (l * total + first + i) * F, rows + (i * level_count + l) * F, F * sizeof(T));
}

// rows of (extras, g)
template <class T>
PF_INLINE void join(const T* extras, int extra_columns, const T* geometry, int columns, T* rows, int64_t n) {
  const int width = extra_columns + columns;
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(rows + i * width, extras + i * extra_columns, extra_columns * sizeof(T));
    std::memcpy(rows + i * width + extra_columns, geometry + i * columns, columns * sizeof(T));
  }
}

// features (L, n, F) is written on the way; if it is null, h and g have been found before: kept (n, L F) and geometry.
// These are null where no backward pass follows; so are extras and colors where only sigmas are wanted, and g then is its
// first column alone.
template <class P, int F, class H, class T = typename P::Real>
void forward_radiance(const Radiance<T>& field, const T* points, const H* table, const T* extras, T* sigmas, T* colors,
                      T* features, T* kept, T* geometry, int64_t n) {
  if (features) encode<3, F>(points, table, field.levels, field.level_count, features, F, n * F, n);
  Arena& call_arena = fresh_arena<Use::CALL>();
  Parameters<T> first = field.density;
  if (!colors) first.dims[first.layers] = 1;
  const Net<P> density(first, false, call_arena);
  const Net<P> color(colors ? field.color : first, false, call_arena);
  const int channels = field.channels(), columns = first.dims[first.layers], extra_columns = field.extras();
  const int64_t size = chunk_size(n);
  parallel_pieces(ceil_div(n, size), [&](int64_t chunk) {
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    Arena& arena = fresh_arena<Use::TILE>();
    T *own_h = arena.take<T>(TILE * channels), *own = arena.take<T>(TILE * columns);
    T* rows = arena.take<T>(TILE * (extra_columns + columns));
    Forward<P> density_pass{density, own_h, own, Saved<P>{nullptr, density.layers, 0}, 0};
    Forward<P> color_pass{color, rows, nullptr, Saved<P>{nullptr, color.layers, 0}, 0};
    density_pass.take_scratch(arena);
    color_pass.take_scratch(arena);
    for (int64_t at = chunk * size; at < end; at += TILE) {
      const int64_t m = end - at < TILE ? end - at : TILE;
      T* g = geometry ? geometry + at * columns : own;
      if (features) {
        T* h = kept ? kept + at * channels : own_h;
        gather_levels<F>(features, field.level_count, n, at, h, m);
        density_pass.inputs = h, density_pass.outputs = g;
        density_pass.tile(0, m);
      }
      for (int64_t r = 0; r < m; r += LANES) {
        const int k = int(m - r < LANES ? m - r : LANES);
        store_first(sigmas + at + r, density_of(load_strided(g + r * columns, columns, k)), k);
      }
      if (!colors) continue;
      join(extras + at * extra_columns, extra_columns, g, columns, rows, m);
      T* c = colors + 3 * at;
      color_pass.outputs = c;
      color_pass.tile(0, m);
      for (int64_t r = 0; r < 3 * m; r += LANES) {
        const int k = int(3 * m - r < LANES ? 3 * m - r : LANES);
        store_first(c + r, color_of(load_first(c + r, k)), k);
      }
    }
  });
}

// What one chunk of the backward pass needs besides the two networks' passes
template <class T>
struct RadianceGradients {
  const T *extras, *features, *geometry, *sigmas, *colors, *grad_sigmas, *grad_colors;
  T* grad_features;
};

template <class P, int F, class T = typename P::Real>
void backward_radiance(const Radiance<T>& field, const RadianceGradients<T>& given, const Gradients<T>& density_grads,
                       const Gradients<T>& color_grads, int64_t n) {
  Arena& call_arena = fresh_arena<Use::CALL>();
  const Net<P> density(field.density, true, call_arena), color(field.color, true, call_arena);
  const Sums<P> density_layout(density), color_layout(color);
  const int channels = field.channels(), columns = field.geometry(), extra_columns = field.extras();
  const int width = extra_columns + columns;
  const int64_t size = chunk_size(n), chunks = ceil_div(n, size);
  T* density_sums = call_arena.take<T>(density_layout.size * chunks);
  T* color_sums = call_arena.take<T>(color_layout.size * chunks);
  parallel_pieces(chunks, [&](int64_t chunk) {
    const int64_t first = chunk * size, count = n - first < size ? n - first : size;
    Arena& arena = fresh_arena<Use::TILE>();
    T *rows = arena.take<T>(TILE * width), *grad_rows = arena.take<T>(TILE * width);
    T *grad_raw = arena.take<T>(TILE * 3), *grad_geometry = arena.take<T>(TILE * columns);
    T* grad_h = arena.take<T>(TILE * channels);
    Gradients<T> of_color = color_grads, of_density = density_grads;
    of_color.inputs = grad_rows, of_density.inputs = grad_h;
    const Saved<P> from_color{nullptr, color.layers, 0}, from_density{nullptr, density.layers, 0};
    Backward<P> color_pass{color, rows, grad_raw, from_color, 0, of_color, color_layout};
    Backward<P> density_pass{density, nullptr, grad_geometry, from_density, 0, of_density, density_layout};
    color_pass.take_scratch(arena);
    density_pass.take_scratch(arena);
    T *own_color = color_sums + chunk * color_layout.size, *own_density = density_sums + chunk * density_layout.size;
    std::memset(own_color, 0, color_layout.size * sizeof(T));
    std::memset(own_density, 0, density_layout.size * sizeof(T));
    for (int64_t i = 0; i < count; i += TILE) {
      const int64_t at = first + i, m = count - i < TILE ? count - i : TILE;
      const T* g = given.geometry + at * columns;
      join(given.extras + at * extra_columns, extra_columns, g, columns, rows, m);
      for (int64_t r = 0; r < 3 * m; r += LANES) {
        const int k = int(3 * m - r < LANES ? 3 * m - r : LANES);
        const Lane<T> c = load_first(given.colors + 3 * at + r, k);
        store_first(grad_raw + r, load_first(given.grad_colors + 3 * at + r, k) * c * (Lane<T>(T(1)) - c), k);
      }
      color_pass.n = m;
      color_pass.tile(0, m, own_color);
      for (int64_t r = 0; r < m; ++r) {
        T* to = grad_geometry + r * columns;
        std::memcpy(to, grad_rows + r * width + extra_columns, columns * sizeof(T));
        if (!(g[r * columns] > T(15))) to[0] += given.grad_sigmas[at + r] * given.sigmas[at + r];
      }
      density_pass.inputs = given.features + at * channels;
      density_pass.n = m;
      density_pass.tile(0, m, own_density);
      scatter_rows<F>(grad_h, field.level_count, n, at, given.grad_features, m);
    }
  });
  add_up(density, density_layout, density_sums, chunks, density_grads);
  add_up(color, color_layout, color_sums, chunks, color_grads);
}

// ---- entry points: the template arguments from numbers ----------------------------------------------------------------

template <class Call> void with_features(int features, Call call) {
  if (features == 1) call(std::integral_constant<int, 1>());
  if (features == 2) call(std::integral_constant<int, 2>());
  if (features == 4) call(std::integral_constant<int, 4>());
  if (features == 8) call(std::integral_constant<int, 8>());
}

template <class P, class H, class T = typename P::Real>
void radiance(const T* points, const H* table, const int64_t* levels, const T* extras, T* sigmas, T* colors, T* features,
              T* kept, T* geometry, int64_t n, int level_count, int features_per_level, int rounded, int density_layers, int d0, int d1,
              int d2, int d3, int d4, int d5, const T* dw0, const T* dw1, const T* dw2, const T* dw3, const T* dw4,
              int color_layers, int c0, int c1, int c2, int c3, int c4, int c5, const T* cw0, const T* cw1, const T* cw2,
              const T* cw3, const T* cw4) {
  const Radiance<T> field{(const Level*)levels,
                          level_count,
                          {density_layers, {d0, d1, d2, d3, d4, d5}, {dw0, dw1, dw2, dw3, dw4}, {}, rounded != 0},
                          {color_layers, {c0, c1, c2, c3, c4, c5}, {cw0, cw1, cw2, cw3, cw4}, {}, rounded != 0}};
  with_features(features_per_level, [&](auto f) { forward_radiance<P, f>(field, points, table, extras, sigmas, colors, features, kept, geometry, n); });
}

template <class P, class T = typename P::Real>
void radiance_backward(const T* extras, const T* features, const T* geometry, const T* sigmas, const T* colors,
                       const T* grad_sigmas, const T* grad_colors, T* grad_features, int64_t n, int level_count, int features_per_level, int rounded, int density_layers,
                       int d0, int d1, int d2, int d3, int d4, int d5, const T* dw0, const T* dw1, const T* dw2, const T* dw3,
                       const T* dw4, int color_layers, int c0, int c1, int c2, int c3, int c4, int c5, const T* cw0,
                       const T* cw1, const T* cw2, const T* cw3, const T* cw4, T* gdw0, T* gdw1, T* gdw2, T* gdw3, T* gdw4,
                       T* gcw0, T* gcw1, T* gcw2, T* gcw3, T* gcw4) {
  const Radiance<T> field{nullptr,
                          level_count,
                          {density_layers, {d0, d1, d2, d3, d4, d5}, {dw0, dw1, dw2, dw3, dw4}, {}, rounded != 0},
                          {color_layers, {c0, c1, c2, c3, c4, c5}, {cw0, cw1, cw2, cw3, cw4}, {}, rounded != 0}};
  const RadianceGradients<T> given{extras, features, geometry, sigmas, colors, grad_sigmas, grad_colors, grad_features};
  const Gradients<T> density_grads{nullptr, {gdw0, gdw1, gdw2, gdw3, gdw4}, {}}, color_grads{nullptr, {gcw0, gcw1, gcw2, gcw3, gcw4}, {}};
  with_features(features_per_level, [&](auto f) { backward_radiance<P, f>(field, given, density_grads, color_grads, n); });
}

#endif

}  // namespace
}  // namespace polyfield
