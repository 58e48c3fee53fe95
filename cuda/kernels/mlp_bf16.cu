// The fused multilayer perceptron of mlp.cu with products in bfloat16, sums in float32: tensor cores, or AVX512_BF16.
//
// Tensors are float32 on both sides. On the CPU these functions are part of the AVX-512 module and compiled for a processor that
// also has bfloat16 dot products; Python calls them only where native.has_bfloat16(). In CUDA the file is compiled for
// one network's sizes, and for bfloat16 or float16 operands (PF_HALF): see tensor_layers.h for the layers and tensor_gradients.h for the way back.
#include "lane.h"

#if PF_CUDA

#include "op.h"
#include "tensor_gradients.h"

#if !defined(PF_LAYERS)
#define PF_LAYERS 3
#define PF_D0 32
#define PF_D1 64
#define PF_D2 64
#define PF_D3 16
#define PF_D4 0
#define PF_D5 0
#define PF_BIASED 0
#define PF_ROWS 32
#endif

namespace polyfield {

using Net = Network<PF_LAYERS, PF_BIASED, 0, PF_D0, PF_D1, PF_D2, PF_D3, PF_D4, PF_D5>;

// weights -> patches for the products forward, then backward: one thread per lane of a patch
void mlp_pack(const Inline<Pointers>& weights, uint32_t* packed, Threads<> lanes) {
  for_each(lanes, [&](int64_t i) {
    const int patch = int(i / 32) % Net::patches;
    reinterpret_cast<Patch*>(packed)[i] = pack_patch<Net>(weights.value, patch, i / 32 >= Net::patches, int(i % 32));
  });
}

// Each warp: PF_ROWS of n samples
void mlp_tensor(const float* inputs, const uint32_t* packed, const Inline<Pointers>& biases, float* outputs, Warps<128, 3> groups, int64_t n) {
  for_each(groups, [&](int64_t group) {
    constexpr int M = PF_ROWS / 16, LAST = Net::layers - 1;
    const Patch* patches = reinterpret_cast<const Patch*>(packed);
    uint32_t h[Net::layers][M][Net::widest()][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_rows<PF_D0>(inputs, group * PF_ROWS + 16 * m, n, h[0][m]);
    hidden_layers<Net>(h, patches, biases.value);
    multiply<Net::tiles(LAST), Net::tiles(LAST + 1), Net::biases(LAST)>(
        h[LAST], patches + Net::patch(LAST) * 32, biases.value.of[LAST],
        [&](int m, int tile, const Sums& sums) { store_rows<Net::dim(LAST + 1)>(outputs, group * PF_ROWS + 16 * m, n, tile, sums); });
  });
}

using Gradients = Gradient<Net>;
constexpr bool TWO_BLOCKS = Gradients::registers() <= 96;  // without spills

// Gradients to the inputs (or null), and each block's sums for all weights and biases (or null)
void mlp_tensor_backward(const float* inputs, const float* grad_outputs, const uint32_t* packed, const Inline<Pointers>& biases, float* grad_inputs,
                         float* sums, Blocks<32 * WARPS, TWO_BLOCKS ? 2 : 1> blocks, int64_t n) {
  PF_SHARED(uint32_t, exchange, [Gradients::exchanged()]);
  for_each(blocks, [&](int64_t block) {
    const Patch *forward = reinterpret_cast<const Patch*>(packed), *transposed = forward + Net::patches * 32;
    Gradients gradient;
    gradient.clear();
#pragma unroll 1
    for (int64_t first = block * BLOCK_ROWS; first < n; first += blocks.count * BLOCK_ROWS) {
      const int64_t row = first + 16 * warp_number();
      uint32_t h[Net::layers][1][Net::widest()][4], g[2][1][Net::widest()][4];
      load_rows<PF_D0>(inputs, row, n, h[0][0]);
      load_rows<Net::dim(Net::layers)>(grad_outputs, row, n, g[0][0]);
      hidden_layers<Net>(h, forward, biases.value);
      backward_layers(gradient, h, g, transposed, exchange, sums != nullptr, grad_inputs != nullptr,
                      [&](int tile, const Sums& values) { store_rows<PF_D0>(grad_inputs, row, n, tile, values); });
    }
    if (sums) gradient.write(sums + block * Gradients::size);
  });
}

POLYFIELD_OP(mlp_pack, mlp_pack)
POLYFIELD_OP(mlp_tensor, mlp_tensor)
POLYFIELD_OP(mlp_tensor_backward, mlp_tensor_backward)

}  // namespace polyfield

#elif POLYFIELD_LANES == 16 && defined(__AVX512BW__)

#define PF_MATMUL_TARGET __attribute__((target("avx512bf16")))
#define PF_MATMUL_BFLOAT16
#include "mlp_layers.h"
#include "op.h"

namespace polyfield {

POLYFIELD_OP(mlp_bf16, mlp_forward<Bfloat16>)
POLYFIELD_OP(mlp_backward_bf16, mlp_backward<Bfloat16>)

}  // namespace polyfield

#endif
