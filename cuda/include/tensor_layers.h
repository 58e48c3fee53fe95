// A multilayer perceptron on tensor cores, fully fused: what a warp does with its samples, layer after layer.
//
// A warp holds the activations of 16 samples (or several times 16) as matrix fragments in registers (mma.h) from the first layer to
// the last; only a network's inputs and outputs touch memory. Weights are rounded and laid out as fragments beforehand, 16 x 16 at
// a time, and read from there by all warps: they stay in the first-level cache. Sizes are known when a kernel is compiled, so all
// loops over fragments unroll. Source: Müller et al., "Real-time Neural Radiance Caching for Path Tracing", 2021, section 4.
#pragma once
#include "mma.h"
#include "op.h"

#if PF_CUDA

#if !defined(PF_HALF)
#define PF_HALF BFloat16
#endif

namespace polyfield {
namespace {

using Half = PF_HALF;  // of all operands

constexpr int ceil16(int n) { return (n + 15) / 16; }

// The fragments of a lane give it slots 2t, 2t + 1, 2t + 8, 2t + 9 of sixteen. Those are channels 4t to 4t + 3, which it then reads
// and writes in one piece; what order channels have inside is nothing to a product.
PF_INLINE constexpr int channel_of(int slot) { return slot % 8 / 2 * 4 + slot / 8 * 2 + slot % 2; }

// Sizes of a network: layer l has dim(l) inputs and dim(l + 1) outputs. The first APART inputs begin tiles of their own and so do
// the others, since they come from elsewhere.
template <int LAYERS, bool BIASED, int APART, int... D> struct Network {
  static constexpr int layers = LAYERS, apart = ceil16(APART);
  static constexpr bool biased = BIASED;
  static constexpr int dim(int l) {
    const int d[] = {D...};
    return d[l];
  }
  static constexpr int biases(int l) { return BIASED ? dim(l + 1) : 0; }
  static constexpr int tiles(int l) { return l == 0 ? apart + ceil16(dim(0) - APART) : ceil16(dim(l)); }
  // Of a tile of layer l's inputs: its first column, and where the columns end that it may have; whether all come in fours
  static constexpr int column(int l, int tile) { return l == 0 && tile >= apart ? APART + 16 * (tile - apart) : 16 * tile; }
  static constexpr int last(int l, int tile) { return l == 0 && tile < apart ? APART : dim(l); }
  static constexpr bool fours(int l) { return dim(l) % 4 == 0 && (l > 0 || APART % 4 == 0); }
  // Packed weights, in patches of 16 x 16: where layer l's begin, and all of them; after them the same again, transposed
  static constexpr int patch(int l) { return l == 0 ? 0 : patch(l - 1) + tiles(l - 1) * tiles(l); }
  static constexpr int patches = patch(LAYERS);
  static constexpr int widest() {
    int most = 0;
    for (int l = 0; l <= LAYERS; ++l) most = tiles(l) > most ? tiles(l) : most;
    return most;
  }
};

// ---- memory -----------------------------------------------------------------------------------------------------------

struct alignas(16) Four { float x[4]; };
struct alignas(16) Patch { uint32_t x[4]; };  // a lane's part of 16 x 16 weights: two right operands

// n numbers of four; WHOLE: all or none, and aligned
template <bool WHOLE> PF_INLINE Four load_four(const float* p, int n) {
  Four v{};
  if constexpr (WHOLE) {
    if (n > 0) v = *reinterpret_cast<const Four*>(p);
  } else {
    for (int i = 0; i < 4; ++i)
      if (i < n) v.x[i] = p[i];
  }
  return v;
}
template <bool WHOLE> PF_INLINE void store_four(float* p, const Four& v, int n) {
  if constexpr (WHOLE) {
    if (n > 0) *reinterpret_cast<Four*>(p) = v;
  } else {
    for (int i = 0; i < 4; ++i)
      if (i < n) p[i] = v.x[i];
  }
}

// Rows `row` to `row` + 15 of a matrix of n rows and C channels, rounded; zeros beyond
template <int C, int W> PF_INLINE void load_rows(const float* p, int64_t row, int64_t n, uint32_t (&to)[W][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + lane_number() / 4 + 8 * half;
#pragma unroll
    for (int k = 0; k < ceil16(C); ++k) {
      const int column = 16 * k + lane_number() % 4 * 4;
      const Four v = load_four<C % 4 == 0>(p + r * C + column, r < n ? C - column : 0);
      to[k][half] = pack_halves<Half>(v.x[0], v.x[1]);
      to[k][2 + half] = pack_halves<Half>(v.x[2], v.x[3]);
    }
  }
}

// What a product leaves of 16 rows and 16 columns: two fragments side by side
using Sums = float[2][4];
PF_INLINE Four row_of(const Sums& sums, int half) {
  return {{sums[0][2 * half], sums[0][2 * half + 1], sums[1][2 * half], sums[1][2 * half + 1]}};
}
template <int C> PF_INLINE void store_rows(float* p, int64_t row, int64_t n, int tile, const Sums& sums) {
  const int column = 16 * tile + lane_number() % 4 * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + lane_number() / 4 + 8 * half;
    store_four<C % 4 == 0>(p + r * C + column, row_of(sums, half), r < n ? C - column : 0);
  }
}
template <bool RELU = false> PF_INLINE void round_to(uint32_t (&to)[4], const Sums& sums) {
#pragma unroll
  for (int r = 0; r < 4; ++r) to[r] = pack_halves<Half, RELU>(sums[r / 2][r % 2 * 2], sums[r / 2][r % 2 * 2 + 1]);
}

// ---- products ---------------------------------------------------------------------------------------------------------

// finish(m, tile, sums) for each 16 samples and 16 outputs, from tile FIRST on: in (16 M samples, 16 IN) times IN x OUT patches, plus
// bias, of which there are BIASES.
template <int IN, int OUT, int BIASES, int FIRST = 0, int M, int W, class Finish>
PF_INLINE void multiply(const uint32_t (&in)[M][W][4], const Patch* weights, const float* bias, Finish finish) {
#pragma unroll
  for (int tile = FIRST; tile < OUT; ++tile) {
    Sums sums[M];
    Four start{};
    if constexpr (BIASES > 0) {
      const int channel = 16 * tile + lane_number() % 4 * 4;
      start = load_four<BIASES % 4 == 0>(bias + channel, BIASES - channel);
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[m][i / 4][i % 4] = start.x[i / 4 * 2 + i % 2];
#pragma unroll
    for (int k = 0; k < IN; ++k) {
      Patch w;
      load_constant(w.x, weights[(tile * IN + k) * 32 + lane_number()].x);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_16x8x16<Half>(sums[m][0], in[m][k], w.x[0], w.x[1]);
        mma_16x8x16<Half>(sums[m][1], in[m][k], w.x[2], w.x[3]);
      }
    }
#pragma unroll
    for (int m = 0; m < M; ++m) finish(m, tile, sums[m]);
  }
}

constexpr int MAX_LAYERS = 5;
struct Pointers { const float* of[MAX_LAYERS]; };  // weights or biases, per layer

// h[0], the rounded inputs -> h[1] to h[layers - 1]
template <class Net, int M, int W> PF_INLINE void hidden_layers(uint32_t (&h)[Net::layers][M][W][4], const Patch* packed, const Pointers& biases) {
  for_numbers<0, Net::layers - 1>([&](auto number) {
    constexpr int l = decltype(number)::value;
    multiply<Net::tiles(l), Net::tiles(l + 1), Net::biases(l)>(h[l], packed + Net::patch(l) * 32, biases.of[l],
                                                               [&](int m, int tile, const Sums& sums) { round_to<true>(h[l + 1][m][tile], sums); });
  });
}

// One lane's part of patch `at`, from weights (dim(l + 1), dim(l)); transposed: for the way back, which sums over outputs.
template <class Net> PF_INLINE Patch pack_patch(const Pointers& weights, int at, bool transposed, int lane) {
  Patch packed{};
  const int g = lane / 4, t = lane % 4;
  for_numbers<0, Net::layers>([&](auto number) {
    constexpr int l = decltype(number)::value;
    const int local = at - Net::patch(l);
    if (local < 0 || local >= Net::tiles(l) * Net::tiles(l + 1)) return;
    const int depth = transposed ? Net::tiles(l + 1) : Net::tiles(l), across = local / depth, along = local % depth;
    const auto weight = [&](int k, int j) {  // slot k along the sum, slot j across it
      const int out = 16 * (transposed ? along : across) + channel_of(transposed ? k : j), tile = transposed ? across : along;
      const int in = Net::column(l, tile) + channel_of(transposed ? j : k);
      return out < Net::dim(l + 1) && in < Net::last(l, tile) ? weights.of[l][out * Net::dim(l) + in] : 0.0f;
    };
    for (int r = 0; r < 4; ++r) {
      const int k = r % 2 * 8 + 2 * t, j = r / 2 * 8 + g;
      packed.x[r] = pack_halves<Half>(weight(k, j), weight(k + 1, j));
    }
  });
  return packed;
}

}  // namespace
}  // namespace polyfield

#endif
