// What the processor can do: asked before a module of kernels is loaded, so compiled for any processor.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

namespace {

std::vector<std::string> features() {
  std::vector<std::string> found;
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) found.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    found.push_back("avx512");
  if (__builtin_cpu_supports("avx512bf16")) found.push_back("bf16");
#endif
  return found;
}

}  // namespace

NB_MODULE(_processor, m) { m.def("features", &features); }
