// Gradients of weights from the sums that each block of a backward pass has left (tensor_gradients.h): added up in order, so that
// the bits are the same every time. On the CPU chunks do so within their own kernels.
#include "op.h"

#if PF_CUDA

namespace polyfield {

constexpr int MAX_TARGETS = 10;  // weights and biases of five layers, or the weights of two networks

// The sums of all blocks (blocks, size), added in order: to `count` tensors, each from place `begin` on
struct Targets {
  struct {
    int64_t begin, size;
    float* to;
  } of[MAX_TARGETS];
};
void add_up(const float* sums, const Inline<Targets>& targets, int count, int64_t size, int64_t rows, Blocks<256> n) {
  for_each(n, [&](int64_t block) {
    const int warp = int(threadIdx.x) / 32;
    PF_SHARED(float, parts, [8][32]);
    const int64_t place = block * 32 + lane_number();
    float sum = 0;
    if (place < size)
#pragma unroll 8
      for (int64_t row = warp; row < rows; row += 8) sum += sums[row * size + place];
    parts[warp][lane_number()] = sum;
    __syncthreads();
    if (warp > 0) return;
    for (int i = 1; i < 8; ++i) sum += parts[i][lane_number()];
    for (int i = 0; i < count; ++i) {
      const auto& target = targets.value.of[i];
      if (target.to && place >= target.begin && place < target.begin + target.size) target.to[place - target.begin] = sum;
    }
  });
}

POLYFIELD_OP(add_up, add_up)

}  // namespace polyfield

#endif
