// Fused multilayer perceptron, ReLU between layers: inputs (N, C_in) -> outputs (N, C_out), and its gradients.
//
// Features in lanes, samples row by row: see mlp_layers.h for the passes and matmul.h for the register blocks. These
// are the float32 and float64 instances; with `rounded` the operands of every product are rounded to bfloat16 first,
// which is what mlp_bf16.cu computes natively.
#include "mlp_layers.h"
#include "op.h"

#if !PF_CUDA

namespace polyfield {

POLYFIELD_OP(mlp_f32, mlp_forward<Plain<float>>)
POLYFIELD_OP(mlp_f64, mlp_forward<Plain<double>>)
POLYFIELD_OP(mlp_backward_f32, mlp_backward<Plain<float>>)
POLYFIELD_OP(mlp_backward_f64, mlp_backward<Plain<double>>)

}  // namespace polyfield

#endif
