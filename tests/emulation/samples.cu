// Small kernels that use CUDA's words rightly, and some that do not: what the emulator's own tests run.
#include "lane_pack.h"
#include "mma.h"
#include "op.h"

namespace polyfield {

// A block of 64 threads reverses its part of x.
void reverse(const float* x, float* y, Blocks<64> n) {
  for_each(n, [=](int64_t b) {
    PF_SHARED(float, tile, [64]);
    tile[threadIdx.x] = x[64 * b + threadIdx.x];
    __syncthreads();
    y[64 * b + threadIdx.x] = tile[63 - threadIdx.x];
  });
}
void reverse_without_barrier(const float* x, float* y, Blocks<64> n) {
  for_each(n, [=](int64_t b) {
    PF_SHARED(float, tile, [64]);
    tile[threadIdx.x] = x[64 * b + threadIdx.x];
    y[64 * b + threadIdx.x] = tile[63 - threadIdx.x];
  });
}
void reverse_beyond_the_tile(const float* x, float* y, Blocks<64> n) {
  for_each(n, [=](int64_t b) {
    PF_SHARED(float, tile, [64]);
    tile[threadIdx.x] = x[64 * b + threadIdx.x];
    __syncthreads();
    y[64 * b + threadIdx.x] = tile[64 - threadIdx.x];
  });
}
void reverse_of_half_a_tile(const float* x, float* y, Blocks<64> n) {
  for_each(n, [=](int64_t b) {
    PF_SHARED(float, tile, [64]);
    if (threadIdx.x < 32) tile[threadIdx.x] = x[64 * b + threadIdx.x];
    __syncthreads();
    y[64 * b + threadIdx.x] = tile[63 - threadIdx.x];
  });
}
// The last thread looks at its neighbour's number.
void beyond_the_tensor(const float* x, float* y, Threads<32> n) {
  for_each(n, [=](int64_t i) { y[i] = x[i + 1]; });
}
void write_beyond_the_tensor(float* y, Threads<32> n) {
  for_each(n, [=](int64_t i) { y[i + (i == n - 1)] = 0; });
}
void count_without_atomics(int32_t* count, Threads<32> n) {
  for_each(n, [=](int64_t) { *count += 1; });
}
void count(int32_t* total, Threads<32> n) {
  for_each(n, [=](int64_t) { atomicAdd(total, 1); });
}
// Who comes first is first: no race, but another result each time.
void take_a_number(int32_t* next, int32_t* numbers, Threads<32> n) {
  for_each(n, [=](int64_t i) { numbers[i] = atomicAdd(next, 1); });
}
// Warps: sums, prefix sums, shifts, votes, all at once.
void warp_words(const float* x, float* y, Warps<64> n) {
  for_each(n, [=](int64_t w) {
    const float mine = x[32 * w + lane_number()];
    float* to = y + 32 * 6 * w + lane_number();
    to[0] = tree_sum(mine);
    to[32] = prefix_sum(mine);
    to[64] = prefix_product(mine);
    to[96] = shift_up<3>(mine, -1.0f);
    to[128] = shift_down<5>(mine, -2.0f);
    to[160] = float(group_bits(mine > 1.0f));
  });
}
// Lanes exchange through shared memory, with and without waiting for each other.
template <bool WAIT> void warp_memory(const float* x, float* y, Warps<32> n) {
  for_each(n, [=](int64_t w) {
    PF_SHARED(float, tile, [32]);
    tile[lane_number()] = x[32 * w + lane_number()];
    if (WAIT) __syncwarp();
    y[32 * w + lane_number()] = tile[31 - lane_number()];
  });
}
// Half a warp leaves before a shuffle of the whole; half a block before a barrier of the other half, which is allowed.
void shuffle_with_the_absent(const float* x, float* y, Threads<32> n) {
  for_each(n, [=](int64_t i) {
    if (i < 16) return;
    y[i] = __shfl_sync(WARP, x[i], 20);
  });
}
void barrier_of_those_who_stay(const float* x, float* y, Blocks<64> n) {
  for_each(n, [=](int64_t) {
    PF_SHARED(float, tile, [32]);
    if (threadIdx.x >= 32) return;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[31 - threadIdx.x];
  });
}
void two_barriers(float* y, Blocks<64> n) {
  for_each(n, [=](int64_t) {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      y[threadIdx.x] = 0;
      __syncthreads();
    }
  });
}
void half_a_warp_waits(float* y, Threads<32> n) {
  for_each(n, [=](int64_t i) {
    if (i < 16) __syncwarp();
    else __syncwarp(0xffff0000u);
    y[i] = 0;
  });
}
// Two blocks write the same number.
void blocks_collide(float* y, Blocks<32> n) {
  for_each(n, [=](int64_t b) { y[threadIdx.x] = float(b); });
}
// d (16, 8) += a (16, 16) b (16, 8), each element where PTX says that it lies.
template <class Half> void matrix_product(const float* a, const float* b, float* d, Warps<32> n) {
  for_each(n, [=](int64_t) {
    const int g = lane_number() / 4, t = lane_number() % 4;
    const auto left = [=](int row, int column) { return pack_halves<Half>(a[row * 16 + column], a[row * 16 + column + 1]); };
    const auto right = [=](int row, int column) { return pack_halves<Half>(b[row * 8 + column], b[(row + 1) * 8 + column]); };
    const uint32_t fragment[4] = {left(g, 2 * t), left(g + 8, 2 * t), left(g, 2 * t + 8), left(g + 8, 2 * t + 8)};
    float* places[4] = {d + g * 8 + 2 * t, d + g * 8 + 2 * t + 1, d + (g + 8) * 8 + 2 * t, d + (g + 8) * 8 + 2 * t + 1};
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = *places[i];
    mma_16x8x16<Half>(sums, fragment, right(2 * t, g), right(2 * t + 8, g));
    for (int i = 0; i < 4; ++i) *places[i] = sums[i];
  });
}
// Four blocks of 8 x 8 numbers of 16 bits, each transposed.
template <bool WAIT> void transposed_blocks(const int32_t* x, int32_t* y, Warps<32> n) {
  for_each(n, [=](int64_t) {
    PF_SHARED(uint32_t, blocks, [128]);
    for (int i = 0; i < 4; ++i) blocks[32 * i + lane_number()] = uint32_t(x[32 * i + lane_number()]);
    if (WAIT) __syncwarp();
    uint32_t fragment[4];
    load_transposed(fragment, blocks + 4 * lane_number());
    for (int i = 0; i < 4; ++i) y[32 * i + lane_number()] = int32_t(fragment[i]);
  });
}
// Numbers, rounded, as pairs.
template <class Half, bool RELU> void packed_pairs(const float* x, int32_t* y, Threads<32> n) {
  for_each(n, [=](int64_t i) { y[i] = int32_t(pack_halves<Half, RELU>(x[2 * i], x[2 * i + 1])); });
}
// Every kind of argument, written out as it arrived.
struct Three { int64_t a, b; double* c; };
void arguments(int small, const Inline<Three>& table, int64_t large, float single, double wide, const float* missing, double* y, Threads<32> n) {
  for_each(n, [=](int64_t) {
    y[0] = small, y[1] = double(table.value.a), y[2] = double(large), y[3] = single, y[4] = wide, y[5] = missing ? 1 : 0;
    *table.value.c = 7;
  });
}

POLYFIELD_OP(reverse, reverse)
POLYFIELD_OP(reverse_without_barrier, reverse_without_barrier)
POLYFIELD_OP(reverse_beyond_the_tile, reverse_beyond_the_tile)
POLYFIELD_OP(reverse_of_half_a_tile, reverse_of_half_a_tile)
POLYFIELD_OP(beyond_the_tensor, beyond_the_tensor)
POLYFIELD_OP(write_beyond_the_tensor, write_beyond_the_tensor)
POLYFIELD_OP(count_without_atomics, count_without_atomics)
POLYFIELD_OP(count, count)
POLYFIELD_OP(take_a_number, take_a_number)
POLYFIELD_OP(warp_words, warp_words)
POLYFIELD_OP(warp_memory, warp_memory<true>)
POLYFIELD_OP(warp_memory_without_waiting, warp_memory<false>)
POLYFIELD_OP(shuffle_with_the_absent, shuffle_with_the_absent)
POLYFIELD_OP(barrier_of_those_who_stay, barrier_of_those_who_stay)
POLYFIELD_OP(two_barriers, two_barriers)
POLYFIELD_OP(half_a_warp_waits, half_a_warp_waits)
POLYFIELD_OP(blocks_collide, blocks_collide)
POLYFIELD_OP(matrix_product_bf16, matrix_product<BFloat16>)
POLYFIELD_OP(matrix_product_f16, matrix_product<Float16>)
POLYFIELD_OP(transposed_blocks, transposed_blocks<true>)
POLYFIELD_OP(transposed_blocks_without_waiting, transposed_blocks<false>)
POLYFIELD_OP(packed_pairs_bf16, packed_pairs<BFloat16, false>)
POLYFIELD_OP(packed_pairs_relu_bf16, packed_pairs<BFloat16, true>)
POLYFIELD_OP(packed_pairs_f16, packed_pairs<Float16, false>)
POLYFIELD_OP(packed_pairs_relu_f16, packed_pairs<Float16, true>)
POLYFIELD_OP(arguments, arguments)

}  // namespace polyfield
