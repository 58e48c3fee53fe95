// The fused multilayer perceptron of mlp.cu with products in bfloat16, sums in float32 (AVX512_BF16).
//
// Tensors are float32 on both sides. These functions are part of the AVX-512 module and compiled for a processor that
// also has bfloat16 dot products; Python calls them only where native.has_bfloat16().
#include "lane.h"

#if !PF_CUDA && POLYFIELD_LANES == 16 && defined(__AVX512BW__)

#define PF_MATMUL_TARGET __attribute__((target("avx512bf16")))
#define PF_MATMUL_BFLOAT16
#include "mlp_layers.h"
#include "op.h"

namespace polyfield {

POLYFIELD_OP(mlp_bf16, mlp_forward<Bfloat16>)
POLYFIELD_OP(mlp_backward_bf16, mlp_backward<Bfloat16>)

}  // namespace polyfield

#endif
