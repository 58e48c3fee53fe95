// The radiance field of radiance.cu with products in bfloat16, sums in float32 (AVX512_BF16); see mlp_bf16.cu.
#include "lane.h"

#if !PF_CUDA && POLYFIELD_LANES == 16 && defined(__AVX512BW__)

#define PF_MATMUL_TARGET __attribute__((target("avx512bf16")))
#define PF_MATMUL_BFLOAT16
#include "radiance_layers.h"
#include "op.h"

namespace polyfield {

POLYFIELD_OP(radiance_bf16, radiance<Bfloat16, float>)
POLYFIELD_OP(radiance_bf16_table_bf16, radiance<Bfloat16, BFloat16>)
POLYFIELD_OP(radiance_f16_table_bf16, radiance<Bfloat16, Float16>)
POLYFIELD_OP(radiance_backward_bf16, radiance_backward<Bfloat16>)

}  // namespace polyfield

#endif
