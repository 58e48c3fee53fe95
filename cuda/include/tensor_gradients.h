// The backward pass of tensor_layers.h: a block of eight warps, 16 samples each, and the next block of samples after it.
//
//   g_{l-1} = (g_l W_l) where h_l > 0       dW_l = sum over samples g_l^T h_l       db_l = sum g_l
//
// Activations are computed again from the inputs: that costs a third of the arithmetic, keeping them two passes over memory, which
// is what there is least of. g stays in its warp. dW needs sums over samples, which are rows: warps put g and h into shared memory,
// from which they are read transposed. Each warp owns some 16 x 16 of dW and keeps their sums in registers over all samples of the
// block; in the end each block writes its sums, and they are added in order: no atomics, the same bits every time.
#pragma once
#include "tensor_layers.h"

#if PF_CUDA

namespace polyfield {
namespace {

constexpr int WARPS = 8, BLOCK_ROWS = 16 * WARPS;
constexpr int TILE_WORDS = 128;     // of 16 x 16 numbers of 16 bits
constexpr int EXCHANGE_TILES = 96;  // that 48 KiB of shared memory hold

PF_INLINE int warp_number() { return int(threadIdx.x) / 32; }

// What of layer l's dW a warp owns: UNITS of 16 x 16 in all, row by row, OWN for each warp
template <class Net, int l> struct Shares {
  static constexpr int OUT = Net::tiles(l + 1), IN = Net::tiles(l), UNITS = OUT * IN, OWN = (UNITS + WARPS - 1) / WARPS;
  static constexpr bool ONE_ROW = IN % OWN == 0;                                            // are a warp's units in
  static constexpr int TOGETHER = (OUT + IN) * WARPS <= EXCHANGE_TILES ? WARPS : WARPS / 2;  // warps whose samples fit in
};

// The sums of one warp for all layers, and where they lie in what a block writes: dW, then db, at multiples of four
template <class Net> struct Gradient {
  static constexpr int own(int l) { return (Net::tiles(l) * Net::tiles(l + 1) + WARPS - 1) / WARPS; }
  static constexpr int most() {
    int units = 1;
    for (int l = 0; l < Net::layers; ++l) units = own(l) > units ? own(l) : units;
    return units;
  }
  // About what a thread holds: sums, all activations, two layers' gradients
  static constexpr int registers() {
    int held = 8 * Net::widest();
    for (int l = 0; l < Net::layers; ++l) held += 4 * Net::tiles(l) + 8 * own(l);
    return held;
  }
  static constexpr int exchanged() {
    int words = 1;
    for_numbers<0, Net::layers>([&](auto number) {
      using S = Shares<Net, decltype(number)::value>;
      const int here = (S::OUT + S::IN) * S::TOGETHER * TILE_WORDS;
      words = here > words ? here : words;
    });
    return words;
  }
  static constexpr int weights_size(int l) { return (Net::dim(l) * Net::dim(l + 1) + 3) / 4 * 4; }
  static constexpr int at(int l) { return l == 0 ? 0 : at(l - 1) + weights_size(l - 1) + (Net::biased ? (Net::dim(l) + 3) / 4 * 4 : 0); }
  static constexpr int size = at(Net::layers);

  Sums weights[Net::layers][most()];
  float biases[Net::layers][most()][4];

  PF_INLINE void clear() {
#pragma unroll
    for (int l = 0; l < Net::layers; ++l)
#pragma unroll
      for (int i = 0; i < most(); ++i)
#pragma unroll
        for (int e = 0; e < 8; ++e) weights[l][i][e / 4][e % 4] = biases[l][i][e % 4] = 0;
  }

  // All warps: += g^T h, from 16 samples of each
  template <int l, int W> PF_INLINE void add(const uint32_t (&g)[1][W][4], const uint32_t (&h)[1][W][4], uint32_t* exchange) {
    using S = Shares<Net, l>;
    constexpr int TILES = S::OUT + S::IN;
#pragma unroll 1
    for (int first = 0; first < WARPS; first += S::TOGETHER) {
      const int place = warp_number() - first;
      if (place >= 0 && place < S::TOGETHER) {
        uint32_t* to = exchange + place * TILES * TILE_WORDS + lane_number();
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
          for (int r = 0; r < 4; ++r)
            to[tile * TILE_WORDS + 32 * r] = tile < S::OUT ? g[0][tile < S::OUT ? tile : 0][r] : h[0][tile < S::OUT ? 0 : tile - S::OUT][r];
      }
      __syncthreads();
#pragma unroll 2
      for (int s = 0; s < S::TOGETHER; ++s) multiply_units<l>(exchange + s * TILES * TILE_WORDS + 4 * lane_number());
      __syncthreads();
    }
  }
  template <int l> PF_INLINE void multiply_units(const uint32_t* rows) {
    using S = Shares<Net, l>;
    uint32_t left[4] = {};
#pragma unroll
    for (int i = 0; i < S::OWN; ++i) {
      const int unit = warp_number() * S::OWN + i, row = unit / S::IN, column = unit % S::IN;
      if (unit >= S::UNITS) continue;
      if (i == 0 || !S::ONE_ROW) {
        uint32_t blocks[4];
        load_transposed(blocks, rows + row * TILE_WORDS);
        left[0] = blocks[0], left[1] = blocks[2], left[2] = blocks[1], left[3] = blocks[3];
      }
      uint32_t right[4];
      load_transposed(right, rows + (S::OUT + column) * TILE_WORDS);
      mma_16x8x16<Half>(weights[l][i][0], left, right[0], right[1]);
      mma_16x8x16<Half>(weights[l][i][1], left, right[2], right[3]);
      if (Net::biased && column == 0) mma_16x8x16<Half>(biases[l][i], left, ONES<Half>, ONES<Half>);
    }
  }

  PF_INLINE void write(float* to) const {
    for_numbers<0, Net::layers>([&](auto number) {
      constexpr int l = decltype(number)::value;
      using S = Shares<Net, l>;
      float *of_weights = to + at(l), *of_biases = of_weights + weights_size(l);
#pragma unroll
      for (int i = 0; i < S::OWN; ++i) {
        const int unit = warp_number() * S::OWN + i, row = unit / S::IN, tile = unit % S::IN;
        const int column = Net::column(l, tile) + lane_number() % 4 * 4;
        if (unit >= S::UNITS) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int out = 16 * row + channel_of(lane_number() / 4 + 8 * half);
          if (out >= Net::dim(l + 1)) continue;
          store_four<Net::fours(l)>(of_weights + out * Net::dim(l) + column, row_of(weights[l][i], half), Net::last(l, tile) - column);
          if (Net::biased && tile == 0 && lane_number() % 4 == 0) of_biases[out] = biases[l][i][2 * half];
        }
      }
    });
  }
};

// Rounded, and zero where the activation (never below zero) is zero
PF_INLINE void round_open(uint32_t (&to)[4], const Sums& sums, const uint32_t (&h)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float low = sums[r / 2][r % 2 * 2], high = sums[r / 2][r % 2 * 2 + 1];
    to[r] = pack_halves<Half>(h[r] & 0xffffu ? low : 0.0f, h[r] >> 16 ? high : 0.0f);
  }
}

// From the activations h and the gradient g of the outputs, both of 16 samples per warp: the layers' sums, and
// finish(tile, sums) with the gradient to the inputs (but those set apart), if it is wanted.
template <class Net, int W, class Finish>
PF_INLINE void backward_layers(Gradient<Net>& gradient, const uint32_t (&h)[Net::layers][1][W][4],
                               uint32_t (&g)[2][1][W][4], const Patch* transposed, uint32_t* exchange, bool of_weights, bool of_inputs, Finish finish) {
  for_numbers<0, Net::layers>([&](auto number) {
    constexpr int l = Net::layers - 1 - decltype(number)::value, now = decltype(number)::value % 2;
    if (of_weights) gradient.template add<l>(g[now], h[l], exchange);
    if (l == 0 && !of_inputs) return;
    multiply<Net::tiles(l + 1), Net::tiles(l), 0, l == 0 ? Net::apart : 0>(g[now], transposed + Net::patch(l) * 32, nullptr, [&](int, int tile, const Sums& sums) {
      if (l == 0) finish(tile, sums);
      else round_open(g[1 - now][0][tile], sums, h[l][0][tile]);
    });
  });
}

}  // namespace
}  // namespace polyfield

#endif
