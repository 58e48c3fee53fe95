// CUDA's words on a CPU, for tests: a kernel file is compiled with g++, this header before it, and run without a GPU.
//
// Threads of a block are fibers (cuda_emulator.cpp), run one at a time in random order and switched where they
// wait for each other. The kernel file is compiled with the instrumentation of GCC's thread sanitizer, whose calls
// (__tsan_read4, ...) the emulator answers itself: so it sees every access to memory, and reports one outside all tensors
// and shared arrays, one to shared memory that nobody has written, and two by different threads that no barrier orders.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define PF_CUDA 1
#define POLYFIELD_EMULATED 1
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulator {

struct Index { unsigned x, y, z; };
Index thread_index();  // of the thread that runs
Index block_index();
Index block_size();
Index grid_size();

void block_barrier(const char* file, int line);
// What a lane shows the others. Most words of CUDA exchange one number.
struct Brought {
  uint64_t first, second, third;
  operator uint64_t() const { return first; }
};
// Waits for all lanes of `mask`, and returns what each of them brought.
const Brought* meet(uint32_t mask, Brought mine, const char* what);
void warp_barrier(uint32_t mask);
// d += a b, see mma.h
void matrix_product(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, bool float16);
uint16_t to_half(float x, bool relu, bool float16);
void atomic_access(void* p, int bytes);
void* shared_array(const void* key, std::size_t bytes);

template <class T> inline uint64_t to_bits(T x) {
  static_assert(sizeof(T) <= 8);
  uint64_t b = 0;
  std::memcpy(&b, &x, sizeof x);
  return b;
}
template <class T> inline T from_bits(uint64_t b) {
  T x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}
inline int lane() { return int(thread_index().x) & 31; }
// What lane `from` brought; a lane that is not in the mask has nothing defined, and gives other bits each time on a GPU.
template <class T> inline T taken(uint32_t mask, T x, int from, const char* what) {
  return from_bits<T>(meet(mask, {to_bits(x)}, what)[from & 31]);
}

#define PF_UNSEEN __attribute__((no_sanitize_thread))  // its accesses are reported by hand
template <class T, class F> PF_UNSEEN T atomic(T* p, F f) {
  atomic_access(p, sizeof(T));
  const T old = *p;
  *p = f(old);
  return old;
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size())
#define gridDim (::emulator::grid_size())
#define __syncthreads() ::emulator::block_barrier(__FILE__, __LINE__)

inline void __syncwarp(uint32_t mask = 0xffffffffu) { ::emulator::warp_barrier(mask); }
template <class T> T __shfl_sync(uint32_t mask, T x, int from) { return ::emulator::taken(mask, x, from, "__shfl_sync"); }
template <class T> T __shfl_xor_sync(uint32_t mask, T x, int bits) { return ::emulator::taken(mask, x, ::emulator::lane() ^ bits, "__shfl_xor_sync"); }
template <class T> T __shfl_up_sync(uint32_t mask, T x, unsigned by) {
  const int from = ::emulator::lane() - int(by);
  return ::emulator::taken(mask, x, from < 0 ? ::emulator::lane() : from, "__shfl_up_sync");
}
template <class T> T __shfl_down_sync(uint32_t mask, T x, unsigned by) {
  const int from = ::emulator::lane() + int(by);
  return ::emulator::taken(mask, x, from > 31 ? ::emulator::lane() : from, "__shfl_down_sync");
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote) {
  const ::emulator::Brought* votes = ::emulator::meet(mask, {vote}, "__ballot_sync");
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= uint32_t(mask >> i & 1 ? votes[i] : 0) << i;
  return bits;
}
inline bool __any_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) == mask; }
template <class T> uint32_t __match_any_sync(uint32_t mask, T x) {
  const uint64_t mine = ::emulator::to_bits(x);
  const ::emulator::Brought* values = ::emulator::meet(mask, {mine}, "__match_any_sync");
  uint32_t same = 0;
  for (int i = 0; i < 32; ++i) same |= uint32_t((mask >> i & 1) && values[i] == mine) << i;
  return same;
}

template <class T, class U> T atomicAdd(T* p, U x) { return ::emulator::atomic(p, [=](T old) { return old + T(x); }); }
template <class T, class U> T atomicMax(T* p, U x) { return ::emulator::atomic(p, [=](T old) { return old < T(x) ? T(x) : old; }); }
template <class T, class U> T atomicMin(T* p, U x) { return ::emulator::atomic(p, [=](T old) { return T(x) < old ? T(x) : old; }); }
template <class T, class U> T atomicOr(T* p, U x) { return ::emulator::atomic(p, [=](T old) { return T(old | T(x)); }); }
template <class T, class U> T atomicExch(T* p, U x) { return ::emulator::atomic(p, [=](T) { return T(x); }); }
template <class T> T atomicCAS(T* p, T expected, T x) { return ::emulator::atomic(p, [=](T old) { return old == expected ? x : old; }); }
inline void __threadfence() {}

template <class T> T __ldg(const T* p) { return *p; }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(uint32_t(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(uint64_t(x)) : 64; }
inline int32_t __float_as_int(float x) { return ::emulator::from_bits<int32_t>(::emulator::to_bits(x)); }
inline uint32_t __float_as_uint(float x) { return ::emulator::from_bits<uint32_t>(::emulator::to_bits(x)); }
inline float __int_as_float(int32_t x) { return ::emulator::from_bits<float>(::emulator::to_bits(x)); }
inline float __uint_as_float(uint32_t x) { return ::emulator::from_bits<float>(::emulator::to_bits(x)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }

// ---- matrix fragments, see mma.h ----
namespace polyfield {

struct Float16;

template <class Half> void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ::emulator::matrix_product(d, a, b0, b1, std::is_same_v<Half, Float16>);
}

inline void load_transposed(uint32_t (&to)[4], const uint32_t* row) {
  const ::emulator::Brought* lanes = ::emulator::meet(0xffffffffu, {::emulator::to_bits(row)}, "ldmatrix");
  const int g = ::emulator::lane() / 4, t = ::emulator::lane() % 4;
  const uint16_t* rows[4][2];
  for (int block = 0; block < 4; ++block)
    for (int i = 0; i < 2; ++i) rows[block][i] = ::emulator::from_bits<const uint16_t*>(lanes[block * 8 + 2 * t + i]);
  for (int block = 0; block < 4; ++block) to[block] = uint32_t(rows[block][1][g]) << 16 | rows[block][0][g];
}

inline void load_constant(uint32_t (&to)[4], const uint32_t* p) { std::memcpy(to, p, 16); }

template <class Half, bool RELU = false> uint32_t pack_halves(float low, float high) {
  constexpr bool FLOAT16 = std::is_same_v<Half, Float16>;
  return uint32_t(::emulator::to_half(high, RELU, FLOAT16)) << 16 | ::emulator::to_half(low, RELU, FLOAT16);
}

}  // namespace polyfield

// An array that the threads of a block share: PF_SHARED(float, tile, [32][33]).
#define PF_SHARED(type, name, extent)                                         \
  type(&name) extent = *reinterpret_cast<type(*) extent>(::emulator::shared_array( \
      [] { static const char here = 0; return &here; }(), sizeof(type extent)))

// As in op.h, but callable from the test, by address.
#define PF_KERNEL(name, E)                                                       \
  extern "C" const E::Table name##_parameters;                                   \
  extern "C" const E::Table name##_parameters = E::table;                        \
  extern "C" void name(const void* arguments) { E::run(*static_cast<const E::Packed*>(arguments)); }
