// The matrix instructions of a warp, as functions: tensor cores multiply numbers of 16 bits and add in float32.
//
// A matrix is spread over the lanes of a warp in blocks of 8 x 8: with g = lane / 4 and t = lane % 4, a lane holds the elements
// (g, 2t) and (g, 2t + 1) of each block. A 16 x 16 operand is four blocks in the order [0][0], [1][0], [0][1], [1][1]; a right
// operand is held transposed. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix". What a product leaves is held as
// a left operand is, so one layer's output, rounded, is the next one's input and never leaves its lane.
#pragma once
#include "half.h"
#include "lane.h"
#include "parallel.h"

#if PF_CUDA

namespace polyfield {

// What operands are rounded to
template <class Half> constexpr bool IS_FLOAT16 = false;
template <> constexpr bool IS_FLOAT16<Float16> = true;
template <class Half> constexpr uint32_t ONES = IS_FLOAT16<Half> ? 0x3c003c00u : 0x3f803f80u;  // 1, 1

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // no bfloat16; Python launches none of this there (mlp.check_tensor_cores)

template <class Half> PF_INLINE void mma_16x8x16(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) { __trap(); }
PF_INLINE void load_transposed(uint32_t (&)[4], const uint32_t*) { __trap(); }
PF_INLINE void load_constant(uint32_t (&)[4], const uint32_t*) { __trap(); }
template <class Half, bool RELU = false> PF_INLINE uint32_t pack_halves(float, float) { return 0; }

#elif !defined(POLYFIELD_EMULATED)  // tests define their own

// d (16 x 8) += a (16 x 16) b (16 x 8)
#define PF_MMA(type)                                                                                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <class Half> PF_INLINE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (IS_FLOAT16<Half>) PF_MMA("f16");
  else PF_MMA("bf16");
}
#undef PF_MMA

// Four blocks from shared memory, each transposed. Lane i gives the address of row i % 8 (16 bytes) of block i / 8.
PF_INLINE void load_transposed(uint32_t (&to)[4], const uint32_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// Sixteen bytes that no one writes meanwhile, read where it says so: a compiler that is free to reads a whole layer's weights
// ahead, and runs out of registers.
PF_INLINE void load_constant(uint32_t (&to)[4], const uint32_t* p) {
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(p));
}

// Two numbers rounded to nearest, ties to even, those out of range to infinity; with RELU those below zero become zero. NaN stays.
template <class Half, bool RELU = false> PF_INLINE uint32_t pack_halves(float low, float high) {
  uint32_t packed;
#define PF_CONVERT(to) asm("cvt.rn" to "x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low))
  if constexpr (IS_FLOAT16<Half> && RELU) PF_CONVERT(".relu.f16");
  else if constexpr (IS_FLOAT16<Half>) PF_CONVERT(".f16");
  else if constexpr (RELU) PF_CONVERT(".relu.bf16");
  else PF_CONVERT(".bf16");
#undef PF_CONVERT
  return packed;
}

#endif

}  // namespace polyfield

#endif
