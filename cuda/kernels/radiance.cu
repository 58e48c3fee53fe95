// The hash-grid radiance field in one pass, see radiance_layers.h: float32 and float64 products, and float32 ones whose
// operands are rounded to bfloat16 (`rounded`), which radiance_bf16.cu computes natively.
#include "radiance_layers.h"
#include "radiance_march.h"
#include "op.h"

#if !PF_CUDA

namespace polyfield {

POLYFIELD_OP(radiance_f32, radiance<Plain<float>, float>)
POLYFIELD_OP(radiance_bf16_table_f32, radiance<Plain<float>, BFloat16>)
POLYFIELD_OP(radiance_f16_table_f32, radiance<Plain<float>, Float16>)
POLYFIELD_OP(radiance_f64, radiance<Plain<double>, double>)
POLYFIELD_OP(radiance_backward_f32, radiance_backward<Plain<float>>)
POLYFIELD_OP(radiance_backward_f64, radiance_backward<Plain<double>>)
POLYFIELD_OP(radiance_march_f32, radiance_march<Plain<float>, float>)
POLYFIELD_OP(radiance_march_bf16_table_f32, radiance_march<Plain<float>, BFloat16>)
POLYFIELD_OP(radiance_march_f16_table_f32, radiance_march<Plain<float>, Float16>)
POLYFIELD_OP(radiance_march_write, radiance_march_write)

}  // namespace polyfield

#endif
