// The emulator's side of cuda_emulator.h: fibers, their meetings, and what is known of every byte that they touch.
//
// Blocks run one after the other, but count as unordered. Within a block, two accesses to the same byte by different threads, at
// least one of them a plain write, must lie on two sides of a __syncthreads, or of a __syncwarp of their warp.
#include "cuda_emulator.h"

#include <dlfcn.h>
#include <link.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace emulator {
namespace {

constexpr std::size_t STACK = 128 << 10, ARENA = 1 << 20, GAP = 256;
constexpr int32_t NOBODY = -1;

enum State { READY, AT_BARRIER, AT_MEETING, DONE };

struct Thread {
  ucontext_t context;
  State state;
  std::unique_ptr<char[]> stack{new char[STACK]};
  const char* file;  // of the barrier that it waits at
  int line;
};

// Lanes of a warp that wait for each other.
struct Meeting {
  uint32_t mask, arrived = 0, left = 0;
  const char* what;
  Brought values[32] = {};
};

// What was last done to a byte: by which thread, and when in terms of barriers of its block and its warp.
struct Access { int32_t block = NOBODY, thread = 0; uint32_t block_time = 0, warp_time = 0; };
struct Shadow {
  Access write, read, other;  // the last write, the last read, and the last read by another thread than that
  bool atomic = false;        // the write
};

struct Region {
  const char* name;
  char *begin, *end;
  std::vector<Shadow> shadows;
  bool contains(const char* p, std::size_t n) const { return p >= begin && p + n <= end; }
};

struct Array { const void* key; std::size_t begin, end; };

struct Machine {
  ucontext_t scheduler;
  std::vector<Thread> threads;
  int running = 0, block = 0, live = 0;
  unsigned grid = 0;
  uint32_t block_time = 0;
  std::vector<uint32_t> warp_times;
  std::vector<std::vector<Meeting>> meetings;  // per warp
  std::vector<Region> tensors;
  std::vector<Array> arrays;
  Region arena;
  std::unique_ptr<char[]> arena_memory{new char[ARENA]};
  std::size_t arena_used = 0;
  uint64_t seed = 0;
  std::mt19937_64 random;
  void (*kernel)(const void*) = nullptr;
  const void* arguments = nullptr;
  std::size_t arguments_size = 0;
  std::string error;
  char *library_begin = nullptr, *library_end = nullptr;
};
Machine m;

Thread& self() { return m.threads[m.running]; }
void yield() { swapcontext(&self().context, &m.scheduler); }

[[noreturn]] void fail(void* where, const char* format, ...) {
  char text[1024];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  m.error = text;
  if (where) {
    snprintf(text, sizeof text, " at +0x%zx", std::size_t(static_cast<char*>(where) - m.library_begin - 1));
    m.error += text;
  }
  setcontext(&m.scheduler);  // the fibers are given up
  __builtin_unreachable();
}

void body() {
  m.kernel(m.arguments);
  self().state = DONE;
  --m.live;
  yield();
}

// ---- memory -----------------------------------------------------------------------------------------------------
enum Kind { READ, WRITE, ATOMIC };
const char* const KINDS[] = {"read", "write", "atomic operation"};

bool ordered(const Access& a) {
  const int thread = m.running;
  if (a.block == NOBODY || (a.block == m.block && a.thread == thread)) return true;
  if (a.block != m.block) return false;
  return a.block_time < m.block_time || (a.thread / 32 == thread / 32 && a.warp_time < m.warp_times[thread / 32]);
}

void check(void* where, const Region& region, const char* p, Kind kind, const Access& other, const char* did) {
  if (ordered(other)) return;
  fail(where, "a race: %s by thread %d of block %d, and %s by thread %d of block %d, without a barrier between, byte %td of %s",
       KINDS[kind], m.running, m.block, did, other.thread, other.block, p - region.begin, region.name);
}

void touch(Region& region, char* p, std::size_t bytes, Kind kind, void* where) {
  const Access now{m.block, m.running, m.block_time, m.warp_times[m.running / 32]};
  for (char* end = p + bytes; p < end; ++p) {
    Shadow& s = region.shadows[p - region.begin];
    if (kind != ATOMIC || !s.atomic) check(where, region, p, kind, s.write, s.atomic ? "an atomic operation" : "a write");
    if (kind == READ) {
      if (&region == &m.arena && s.write.block == NOBODY)
        fail(where, "a read of shared memory that nobody has written, by thread %d of block %d, byte %td", m.running, m.block, p - region.begin);
      if (s.read.block != now.block || s.read.thread != now.thread) s.other = s.read;
      s.read = now;
    } else {
      check(where, region, p, kind, s.read, "a read");
      check(where, region, p, kind, s.other, "a read");
      s.write = now, s.atomic = kind == ATOMIC;
    }
  }
}

void access(void* address, std::size_t bytes, Kind kind, void* where) {
  char* p = static_cast<char*>(address);
  Thread& t = self();
  if (p >= t.stack.get() && p + bytes <= t.stack.get() + STACK) return;
  for (Region& region : m.tensors)
    if (region.contains(p, bytes)) return touch(region, p, bytes, kind, where);
  if (m.arena.contains(p, bytes)) {
    for (const Array& a : m.arrays)
      if (p >= m.arena.begin + a.begin && p + bytes <= m.arena.begin + a.end) return touch(m.arena, p, bytes, kind, where);
    fail(where, "a %s outside all shared arrays, by thread %d of block %d", KINDS[kind], m.running, m.block);
  }
  const char* constants = static_cast<const char*>(m.arguments);
  if (kind == READ && p >= constants && p + bytes <= constants + m.arguments_size) return;
  if (kind == READ && p >= m.library_begin && p + bytes <= m.library_end) return;
  const char* nearest = "no tensor";
  std::ptrdiff_t distance = PTRDIFF_MAX;
  for (const Region& region : m.tensors) {
    const std::ptrdiff_t d = p < region.begin ? region.begin - p : p - region.end;
    if (d < distance) distance = d, nearest = region.name;
  }
  fail(where, "a %s of %zu bytes outside all tensors, by thread %d of block %d; the nearest is %s, %td bytes away", KINDS[kind], bytes,
       m.running, m.block, nearest, distance);
}

// ---- running ----------------------------------------------------------------------------------------------------
void run_block(int threads) {
  m.block_time = 0;
  m.live = threads;
  m.warp_times.assign((threads + 31) / 32, 0);
  m.meetings.assign((threads + 31) / 32, {});
  m.arrays.clear();
  m.arena_used = GAP;
  std::vector<int> ready;
  for (int i = 0; i < threads; ++i) {
    Thread& t = m.threads[i];
    t.state = READY;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = nullptr;
    makecontext(&t.context, body, 0);
    ready.push_back(i);
  }
  volatile bool stopped = false;
  while (!stopped && m.live) {
    ready.clear();
    int waiting = 0;
    for (int i = 0; i < threads; ++i) {
      if (m.threads[i].state == READY) ready.push_back(i);
      waiting += m.threads[i].state == AT_BARRIER;
    }
    if (ready.empty() && waiting == m.live) {
      for (int i = 0; i < threads; ++i)
        if (m.threads[i].state == AT_BARRIER) m.threads[i].state = READY;
      ++m.block_time;
      continue;
    }
    if (ready.empty()) {
      char text[256];
      snprintf(text, sizeof text, "threads of block %d wait for ever: %d at __syncthreads, %d for lanes of their warp, %d have returned", m.block,
               waiting, m.live - waiting, threads - m.live);
      m.error = text;
      return;
    }
    std::shuffle(ready.begin(), ready.end(), m.random);
    for (int i : ready) {
      m.running = i;
      swapcontext(&m.scheduler, &m.threads[i].context);
      if (!m.error.empty()) return;
    }
  }
}

int find_library(dl_phdr_info* info, std::size_t, void* inside) {
  char *begin = nullptr, *end = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i)
    if (info->dlpi_phdr[i].p_type == PT_LOAD) {
      end = reinterpret_cast<char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
      if (!begin) begin = reinterpret_cast<char*>(info->dlpi_addr);
    }
  if (inside < begin || inside >= end) return 0;
  m.library_begin = begin, m.library_end = end;
  return 1;
}

}  // namespace

Index thread_index() { return {unsigned(m.running), 0, 0}; }
Index block_index() { return {unsigned(m.block), 0, 0}; }
Index block_size() { return {unsigned(m.threads.size()), 1, 1}; }
Index grid_size() { return {m.grid, 1, 1}; }

void block_barrier(const char* file, int line) {
  Thread& t = self();
  for (const Thread& other : m.threads)
    if (other.state == AT_BARRIER && (other.line != line || std::strcmp(other.file, file)))
      fail(__builtin_return_address(0), "threads of block %d wait at different __syncthreads, in lines %d and %d", m.block, other.line, line);
  t.file = file, t.line = line, t.state = AT_BARRIER;
  yield();
}

const Brought* meet(uint32_t mask, Brought mine, const char* what) {
  const int lane = m.running & 31, warp = m.running / 32;
  void* where = __builtin_return_address(0);
  if (!(mask >> lane & 1)) fail(where, "%s: lane %d is not in its mask %08x", what, lane, mask);
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1 && (warp * 32 + i >= int(m.threads.size()) || m.threads[warp * 32 + i].state == DONE))
      fail(where, "%s: lane %d of its mask %08x has returned, or never was", what, i, mask);
  auto& meetings = m.meetings[warp];
  std::size_t at = 0;
  while (at < meetings.size() && (meetings[at].mask != mask || meetings[at].arrived == mask || meetings[at].arrived >> lane & 1)) ++at;
  if (at == meetings.size()) {
    at = 0;
    while (at < meetings.size() && meetings[at].left != meetings[at].mask) ++at;  // reuse: others keep their place
    if (at == meetings.size()) meetings.emplace_back();
    meetings[at] = Meeting{};
    meetings[at].mask = mask, meetings[at].what = what;
  }
  if (std::strcmp(meetings[at].what, what)) fail(where, "lanes of a warp meet at %s and %s", meetings[at].what, what);
  meetings[at].arrived |= 1u << lane;
  meetings[at].values[lane] = mine;
  if (meetings[at].arrived == mask) {
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) m.threads[warp * 32 + i].state = READY;
    if (!std::strcmp(what, "__syncwarp") && mask == 0xffffffffu) ++m.warp_times[warp];
  } else {
    self().state = AT_MEETING;
    yield();
  }
  meetings[at].left |= 1u << lane;
  // Copied, for the meeting's place is reused when all have left it.
  static Brought values[32];
  std::copy(meetings[at].values, meetings[at].values + 32, values);
  return values;
}

void warp_barrier(uint32_t mask) { meet(mask, {}, "__syncwarp"); }

float from_half(uint32_t bits, bool float16) {
  if (!float16) return from_bits<float>(bits << 16);
  const int exponent = int(bits >> 10 & 31), digits = int(bits & 1023);
  const float size = exponent == 31  ? (digits ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(float(digits), -24)
                                     : std::ldexp(float(1024 + digits), exponent - 25);
  return bits >> 15 ? -size : size;
}

// As PTX lays them out: g = lane / 4, t = lane % 4. a: {(g, 2t), (g, 2t+1)}, then 8 rows on, 8 columns on, both;
// b: {(2t, g), (2t+1, g)}, then 8 rows on; d: (g, 2t), (g, 2t+1), then 8 rows on.
void matrix_product(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, bool float16) {
  const auto pair = [](uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; };
  const Brought* lanes = meet(0xffffffffu, {pair(a[0], a[1]), pair(a[2], a[3]), pair(b0, b1)}, "mma");
  const auto number = [=](uint64_t word, int at) { return from_half(uint32_t(word >> 16 * at & 0xffff), float16); };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0;  // in float32; how tensor cores round within a product is not documented
    for (int k = 0; k < 16; ++k) {
      const Brought &left = lanes[row % 8 * 4 + k % 8 / 2], &right = lanes[column * 4 + k % 8 / 2];
      sum += number(k < 8 ? left.first : left.second, row / 8 * 2 + k % 2) * number(right.third, k / 8 * 2 + k % 2);
    }
    d[i] += sum;
  }
}

// Rounded to nearest, ties to even
uint16_t to_half(float x, bool relu, bool float16) {
  const uint64_t bits = to_bits(x);
  if (x != x) return 0x7fff;
  if (relu && !(x > 0)) return 0;
  if (!float16) return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (size >= 65520) return sign | 0x7c00;  // half way from the largest number to the next: infinity
  if (size < 0x1p-14f) return sign | uint16_t(std::nearbyint(size * 0x1p24f));
  const uint64_t digits = to_bits(size) - (uint64_t(112) << 23);  // its exponent counts from -14
  return sign | uint16_t((digits + 0xfff + (digits >> 13 & 1)) >> 13);
}

void atomic_access(void* p, int bytes) { access(p, bytes, ATOMIC, __builtin_return_address(0)); }

void* shared_array(const void* key, std::size_t bytes) {
  for (const Array& a : m.arrays)
    if (a.key == key) return m.arena.begin + a.begin;
  const std::size_t begin = m.arena_used;
  m.arena_used = (begin + bytes + GAP + 127) / 128 * 128;
  if (m.arena_used > ARENA) fail(nullptr, "more than %zu bytes of shared memory", ARENA);
  m.arrays.push_back({key, begin, begin + bytes});
  for (std::size_t i = begin; i < begin + bytes; ++i) {  // it holds anything at first, and not twice the same
    m.arena.begin[i] = char(m.random());
    m.arena.shadows[i] = {};
  }
  return m.arena.begin + begin;
}

}  // namespace emulator

// ---- what Python calls --------------------------------------------------------------------------------------------
struct Tensor { const char* name; void* begin; int64_t bytes; };

// Returns what went wrong, or null.
extern "C" const char* emulator_launch(void (*kernel)(const void*), const void* arguments, int64_t size, int64_t grid, int64_t block,
                                       uint64_t seed, const Tensor* tensors, int64_t count) {
  using namespace emulator;
  m.kernel = kernel, m.arguments = arguments, m.arguments_size = size, m.error.clear();
  m.random.seed(seed);
  dl_iterate_phdr(find_library, reinterpret_cast<void*>(kernel));
  m.tensors.clear();
  for (int64_t i = 0; i < count; ++i) {
    char* begin = static_cast<char*>(tensors[i].begin);
    m.tensors.push_back({tensors[i].name, begin, begin + tensors[i].bytes, std::vector<Shadow>(tensors[i].bytes)});
  }
  m.arena.name = "shared memory", m.arena.begin = m.arena_memory.get(), m.arena.end = m.arena.begin + ARENA;
  m.arena.shadows.resize(ARENA);
  m.threads.resize(block);
  m.grid = unsigned(grid);
  std::vector<int> order(grid);
  for (int64_t i = 0; i < grid; ++i) order[i] = int(i);
  std::shuffle(order.begin(), order.end(), m.random);
  for (int i : order) {
    m.block = i;
    run_block(int(block));
    if (!m.error.empty()) return m.error.c_str();
  }
  return nullptr;
}

// ---- what the compiler calls before every access ------------------------------------------------------------------
#define PF_HOOK(n)                                                                                                              \
  extern "C" void __tsan_read##n(void* p) { emulator::access(p, n, emulator::READ, __builtin_return_address(0)); }              \
  extern "C" void __tsan_write##n(void* p) { emulator::access(p, n, emulator::WRITE, __builtin_return_address(0)); }            \
  extern "C" void __tsan_unaligned_read##n(void* p) { emulator::access(p, n, emulator::READ, __builtin_return_address(0)); }    \
  extern "C" void __tsan_unaligned_write##n(void* p) { emulator::access(p, n, emulator::WRITE, __builtin_return_address(0)); }
PF_HOOK(1) PF_HOOK(2) PF_HOOK(4) PF_HOOK(8) PF_HOOK(16)
extern "C" void __tsan_read_range(void* p, unsigned long n) { emulator::access(p, n, emulator::READ, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void* p, unsigned long n) { emulator::access(p, n, emulator::WRITE, __builtin_return_address(0)); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
