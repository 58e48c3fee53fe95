// The hash-grid radiance field on tensor cores, a warp with its samples from the table to the colour:
//
//   h = encode(x);  g = density_network(h);  sigma = exp(min(g_0, 15));  c = sigmoid(colour_network(extras, g))
//
// The four channels of every sixteen that a lane holds of a sample (tensor_layers.h) are one level of four features, or two levels of
// two: so each lane looks up what it will multiply, and features are operands without passing through memory. The density network's
// outputs, rounded, are operands of the colour network as they lie. Kept for the backward pass are the features, as operands;
// all else is computed again, and gradients of weights are summed as in tensor_gradients.h.
#pragma once
#include "activations.h"
#include "hash_tile.h"
#include "tensor_gradients.h"

#if PF_CUDA

namespace polyfield {
namespace {

// Features of samples `row` to `row` + 15 at L levels, as operands; zeros beyond n
template <int L, int W, class H>
PF_INLINE void encode_rows(const float* points, const H* table, const Level* levels, int64_t row, int64_t n, uint32_t (&to)[W][4]) {
  constexpr int CHANNELS = L * WIDTH, PART = WIDTH < 4 ? WIDTH : 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + lane_number() / 4 + 8 * half;
    float point[3] = {};
    if (r < n)
      for (int d = 0; d < 3; ++d) point[d] = points[3 * r + d];
#pragma unroll
    for (int tile = 0; tile < ceil16(CHANNELS); ++tile) {
      Four v{};
#pragma unroll
      for (int part = 0; part < 4; part += PART) {
        const int channel = 16 * tile + lane_number() % 4 * 4 + part;
        if (r >= n || channel >= CHANNELS) continue;
        const Level& level = levels[channel / WIDTH];
        const Place<3, float> at = place<3>(level, point);
        Vec<float, PART> corner[8];
        corner_values<3, PART>(at, table + level.offset * WIDTH, WIDTH, channel % WIDTH, corner);
        interpolate<3>(corner, at.fraction);
        for (int f = 0; f < PART; ++f) v.x[part + f] = corner[0].x[f];
      }
      to[tile][half] = pack_halves<Half>(v.x[0], v.x[1]);
      to[tile][2 + half] = pack_halves<Half>(v.x[2], v.x[3]);
    }
  }
}

// Operands of 16 samples and TILES x 16 channels, kept as they are: (samples / 16, TILES, 32 lanes, 4)
template <int TILES, int W> PF_INLINE void keep_rows(Patch* kept, int64_t row, const uint32_t (&from)[W][4]) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) kept[(row / 16 * TILES + tile) * 32 + lane_number()] = {{from[tile][0], from[tile][1], from[tile][2], from[tile][3]}};
}
template <int TILES, int W> PF_INLINE void load_kept(const Patch* kept, int64_t row, int64_t n, uint32_t (&to)[W][4]) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    Patch patch{};
    if (row < n) patch = kept[(row / 16 * TILES + tile) * 32 + lane_number()];
#pragma unroll
    for (int r = 0; r < 4; ++r) to[tile][r] = patch.x[r];
  }
}

// f(r, half) by the lanes that hold the first channels of samples r < n
template <class F> PF_INLINE void for_first_channels(int64_t row, int64_t n, F f) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + lane_number() / 4 + 8 * half;
    if (lane_number() % 4 == 0 && r < n) f(r, half);
  }
}

// From the first 16 outputs of the density network
PF_INLINE void store_densities(float* sigmas, int64_t row, int64_t n, const Sums& sums) {
  for_first_channels(row, n, [&](int64_t r, int half) { sigmas[r] = density_of(row_of(sums, half).x[0]); });
}

// Sizes of the two networks: the colour network's inputs are EXTRAS columns, then the density network's outputs.
template <class Density_, class Color_, int EXTRAS_> struct Field {
  using Density = Density_;
  using Color = Color_;
  static constexpr int EXTRAS = EXTRAS_, LAST_DENSITY = Density::layers - 1, LAST_COLOR = Color::layers - 1;
  static constexpr int colors_at = 2 * 32 * Density::patches;  // in the packed weights: each network's, then transposed
};

// The colour network's activations from those of the density network, h, whose last layer is run for it, and extras.
// first(sums): the first 16 outputs of the density network
template <class F, int W, int V, class First>
PF_INLINE void color_layers(const uint32_t (&h)[F::Density::layers][1][W][4], uint32_t (&c)[F::Color::layers][1][V][4], const Patch* packed,
                            const float* extras, int64_t row, int64_t n, First first) {
  using Density = typename F::Density;
  constexpr int l = F::LAST_DENSITY;
  multiply<Density::tiles(l), Density::tiles(l + 1), 0>(h[l], packed + Density::patch(l) * 32, nullptr, [&](int, int tile, const Sums& sums) {
    if (tile == 0) first(sums);
    round_to(c[0][0][F::Color::apart + tile], sums);
  });
  load_rows<F::EXTRAS>(extras, row, n, c[0][0]);
  hidden_layers<typename F::Color>(c, packed + F::colors_at, Pointers{});
}

}  // namespace
}  // namespace polyfield

#endif
