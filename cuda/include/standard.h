// What kernels use of C++'s standard library. NVRTC brings none of it, so for it these few words are defined here.
#pragma once
#if !defined(__CUDACC_RTC__)

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#else

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

namespace std {
template <class A, class B> inline constexpr bool is_same_v = false;
template <class A> inline constexpr bool is_same_v<A, A> = true;
template <class A> inline constexpr bool is_pointer_v = false;
template <class A> inline constexpr bool is_pointer_v<A*> = true;
template <bool CHOICE, class A, class B> struct conditional { using type = A; };
template <class A, class B> struct conditional<false, A, B> { using type = B; };
template <bool CHOICE, class A, class B> using conditional_t = typename conditional<CHOICE, A, B>::type;
using ::memcpy;
}  // namespace std

#endif
