// The processor's float32 multiply-add rate: the ceiling that benchmarks hold matrix kernels against.
//
// Each thread keeps 12 independent accumulators (enough to hide the latency of two multiply-add units) in registers
// and does `rounds` dependent steps on each: 2 * 12 * LANES operations per round, no memory.
#include "lane.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {

#if !PF_CUDA

// result: one float per thread, so that the work cannot be dropped. Operations done: 24 * LANES * rounds per thread.
void fma_peak(float* result, int64_t threads, int64_t rounds) {
  parallel_pieces(threads, [=](int64_t thread) {
    const Lane<float> a(0.999999f), b(1e-7f);
    Lane<float> x[12];
    for (int i = 0; i < 12; ++i) x[i] = Lane<float>(float(i + thread));
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
      for (int i = 0; i < 12; ++i) x[i] = x[i] * a + b;
    }
    Lane<float> s(0.0f);
    for (int i = 0; i < 12; ++i) s += x[i];
    result[thread] = sum(s);
  });
}

POLYFIELD_OP(fma_peak, fma_peak)

#endif

}  // namespace polyfield
