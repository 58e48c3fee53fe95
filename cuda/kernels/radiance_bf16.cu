// The radiance field of radiance.cu with products in bfloat16, sums in float32: tensor cores, or AVX512_BF16; see mlp_bf16.cu.
//
// In CUDA the file is compiled for one field's sizes, or without colour layers for densities alone; tensor_radiance.h has what a warp does.
#include "lane.h"

#if PF_CUDA

#if !defined(PF_LEVELS)
#define PF_LEVELS 8
#define PF_DIMENSIONS 3
#define PF_FEATURES 4
#define PF_TABLE BFloat16
#define PF_DENSITY_LAYERS 2
#define PF_DENSITY 32, 64, 16
#define PF_COLOR_LAYERS 3
#define PF_COLOR 32, 64, 64, 3
#define PF_EXTRAS 16
#endif
#include "op.h"
#include "tensor_radiance.h"

namespace polyfield {

constexpr bool COLORED = PF_COLOR_LAYERS > 0;
using Density = Network<PF_DENSITY_LAYERS, false, 0, PF_DENSITY>;
using Color = Network<PF_COLOR_LAYERS, false, PF_EXTRAS, PF_COLOR>;
using Fields = Field<Density, Color, PF_EXTRAS>;

// weights of both networks -> patches for the products forward, then backward, of one after the other: a thread per lane of a patch
void radiance_pack(const Inline<Pointers>& density, const Inline<Pointers>& color, uint32_t* packed, Threads<> lanes) {
  for_each(lanes, [&](int64_t i) {
    const int lane = int(i % 32), at = int(i / 32), of_color = at - 2 * Density::patches;
    Patch& to = reinterpret_cast<Patch*>(packed)[i];
    if (of_color < 0) to = pack_patch<Density>(density.value, at % Density::patches, at >= Density::patches, lane);
    else if constexpr (COLORED) to = pack_patch<Color>(color.value, of_color % Color::patches, of_color >= Color::patches, lane);
  });
}

#if PF_COLOR_LAYERS == 0

// The densities alone
void radiance_tensor_density(const float* points, const PF_TABLE* table, const int64_t* levels, const uint32_t* packed, float* sigmas,
                             Warps<128, 6> groups, int64_t n) {
  for_each(groups, [&](int64_t group) {
    constexpr int l = Fields::LAST_DENSITY;
    const int64_t row = group * 16;
    const Patch* patches = reinterpret_cast<const Patch*>(packed);
    uint32_t h[Density::layers][1][Density::widest()][4];
    encode_rows<PF_LEVELS>(points, table, reinterpret_cast<const Level*>(levels), row, n, h[0][0]);
    hidden_layers<Density>(h, patches, Pointers{});
    multiply<Density::tiles(l), 1, 0>(h[l], patches + Density::patch(l) * 32, nullptr,
                                        [&](int, int, const Sums& sums) { store_densities(sigmas, row, n, sums); });
  });
}

POLYFIELD_OP(radiance_tensor_density, radiance_tensor_density)

#else

// Each warp: 16 of n samples, so that many warps wait for the table at a time. kept: the features for the backward pass, or null.
void radiance_tensor(const float* points, const PF_TABLE* table, const int64_t* levels, const float* extras, const uint32_t* packed, float* sigmas,
                     float* colors, uint32_t* kept, Warps<128, 3> groups, int64_t n) {
  for_each(groups, [&](int64_t group) {
    const int64_t row = group * 16;
    const Patch* patches = reinterpret_cast<const Patch*>(packed);
    uint32_t h[Density::layers][1][Density::widest()][4], c[Color::layers][1][Color::widest()][4];
    encode_rows<PF_LEVELS>(points, table, reinterpret_cast<const Level*>(levels), row, n, h[0][0]);
    if (kept) keep_rows<Density::tiles(0)>(reinterpret_cast<Patch*>(kept), row, h[0][0]);
    hidden_layers<Density>(h, patches, Pointers{});
    color_layers<Fields>(h, c, patches, extras, row, n, [&](const Sums& sums) { store_densities(sigmas, row, n, sums); });
    constexpr int l = Fields::LAST_COLOR;
    multiply<Color::tiles(l), 1, 0>(c[l], patches + Fields::colors_at + Color::patch(l) * 32, nullptr, [&](int, int, const Sums& sums) {
      for_first_channels(row, n, [&](int64_t r, int half) {
        for (int i = 0; i < 3; ++i) colors[3 * r + i] = color_of(row_of(sums, half).x[i]);
      });
    });
  });
}

// Gradients to the features (n, L F), and each block's sums for the weights of both networks
void radiance_tensor_backward(const float* extras, const uint32_t* kept, const float* colors, const float* grad_sigmas, const float* grad_colors,
                              const uint32_t* packed, float* grad_features, float* sums, Blocks<32 * WARPS> blocks, int64_t n) {
  using OfDensity = Gradient<Density>;
  using OfColor = Gradient<Color>;
  constexpr int EXCHANGED = OfDensity::exchanged() > OfColor::exchanged() ? OfDensity::exchanged() : OfColor::exchanged();
  PF_SHARED(uint32_t, exchange, [EXCHANGED]);
  for_each(blocks, [&](int64_t block) {
    const Patch* patches = reinterpret_cast<const Patch*>(packed);
    OfDensity density_gradient;
    OfColor color_gradient;
    density_gradient.clear();
    color_gradient.clear();
#pragma unroll 1
    for (int64_t first = block * BLOCK_ROWS; first < n; first += blocks.count * BLOCK_ROWS) {
      const int64_t row = first + 16 * warp_number();
      uint32_t h[Density::layers][1][Density::widest()][4], c[Color::layers][1][Color::widest()][4];
      uint32_t of_geometry[2][1][Density::widest()][4], g[2][1][Color::widest()][4];
      load_kept<Density::tiles(0)>(reinterpret_cast<const Patch*>(kept), row, n, h[0][0]);
      hidden_layers<Density>(h, patches, Pointers{});
      float by_log_density[2] = {};  // of the loss, for the lanes that hold it
      color_layers<Fields>(h, c, patches, extras, row, n, [&](const Sums& outputs) {
        for_first_channels(row, n, [&](int64_t r, int half) {
          const float x = row_of(outputs, half).x[0];
          if (!(x > 15.0f)) by_log_density[half] = grad_sigmas[r] * density_of(x);
        });
      });
      float raw[2][3] = {};
      for_first_channels(row, n, [&](int64_t r, int half) {
        for (int i = 0; i < 3; ++i) {
          const float color = colors[3 * r + i];
          raw[half][i] = grad_colors[3 * r + i] * color * (1.0f - color);
        }
      });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        g[0][0][0][half] = pack_halves<Half>(raw[half][0], raw[half][1]);
        g[0][0][0][2 + half] = pack_halves<Half>(raw[half][2], 0.0f);
      }
      backward_layers(color_gradient, c, g, patches + Fields::colors_at + 32 * Color::patches, exchange, true, true,
                      [&](int tile, const Sums& found) {
                        Sums values;
#pragma unroll
                        for (int i = 0; i < 8; ++i) values[i / 4][i % 4] = found[i / 4][i % 4];
                        if (tile == Color::apart) values[0][0] += by_log_density[0], values[0][2] += by_log_density[1];
                        round_to(of_geometry[0][0][tile - Color::apart], values);
                      });
      backward_layers(density_gradient, h, of_geometry, patches + 32 * Density::patches, exchange, true, true,
                      [&](int tile, const Sums& values) { store_rows<PF_LEVELS * PF_FEATURES>(grad_features, row, n, tile, values); });
    }
    float* own = sums + block * (OfDensity::size + OfColor::size);
    density_gradient.write(own);
    color_gradient.write(own + OfDensity::size);
  });
}

POLYFIELD_OP(radiance_tensor, radiance_tensor)
POLYFIELD_OP(radiance_tensor_backward, radiance_tensor_backward)

#endif

POLYFIELD_OP(radiance_pack, radiance_pack)

}  // namespace polyfield

#elif POLYFIELD_LANES == 16 && defined(__AVX512BW__)

#define PF_MATMUL_TARGET __attribute__((target("avx512bf16")))
#define PF_MATMUL_BFLOAT16
#include "radiance_layers.h"
#include "radiance_march.h"
#include "op.h"

namespace polyfield {

POLYFIELD_OP(radiance_bf16, radiance<Bfloat16, float>)
POLYFIELD_OP(radiance_bf16_table_bf16, radiance<Bfloat16, BFloat16>)
POLYFIELD_OP(radiance_f16_table_bf16, radiance<Bfloat16, Float16>)
POLYFIELD_OP(radiance_backward_bf16, radiance_backward<Bfloat16>)
POLYFIELD_OP(radiance_march_bf16, radiance_march<Bfloat16, float>)
POLYFIELD_OP(radiance_march_bf16_table_bf16, radiance_march<Bfloat16, BFloat16>)
POLYFIELD_OP(radiance_march_f16_table_bf16, radiance_march<Bfloat16, Float16>)

}  // namespace polyfield

#endif
