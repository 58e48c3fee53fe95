// Work space of kernels on the CPU: vectors that ask for large pages, because random access to many megabytes otherwise
// waits for the processor's page tables.
#pragma once
#include <cstdlib>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace polyfield {

template <class T> struct LargePages {
  using value_type = T;
  static constexpr std::size_t PAGE = std::size_t(2) << 20, LINE = 64;

  LargePages() = default;
  template <class U> LargePages(const LargePages<U>&) {}
  T* allocate(std::size_t n) {
    const std::size_t bytes = n * sizeof(T), unit = bytes < 2 * PAGE ? LINE : PAGE, whole = (bytes + unit - 1) / unit * unit;
    void* p = std::aligned_alloc(unit, whole);
    if (!p) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (unit == PAGE) madvise(p, whole, MADV_HUGEPAGE);  // advice: if it is not taken, pages are small
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t) { std::free(p); }
  template <class U> bool operator==(const LargePages<U>&) const { return true; }
  template <class U> bool operator!=(const LargePages<U>&) const { return false; }
};

template <class T> using Scratch = std::vector<T, LargePages<T>>;

}  // namespace polyfield
