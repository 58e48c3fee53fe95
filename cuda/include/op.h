// How a kernel's entry point becomes callable: POLYFIELD_OP(sh_basis_f32, sh_basis<float>).
//
// An entry point is a plain function of pointers and numbers that returns nothing; one of its parameters, of a type in
// parallel.h, is the number of items. Its signature is all there is to know: on the CPU the macro adds it to a list which
// cpu/module.cpp hands to Python; in CUDA it makes a kernel of this name, and beside it `<name>_parameters`, from which Python reads
// how to pack the arguments and how large a grid to launch. A kernel file needs no line anywhere else.
#pragma once
#include "lane.h"
#include "parallel.h"

#define PF_JOIN2(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN2(a, b)

namespace polyfield {

// A small table of sizes and addresses in host memory, native.Table in Python. An entry point takes const Inline<A>&; in
// CUDA it lies among the arguments.
template <class A> struct Inline { A value; };
template <class A> inline constexpr bool is_inline = false;
template <class A> inline constexpr bool is_inline<const Inline<A>&> = true;

}  // namespace polyfield

#if PF_CUDA

namespace polyfield {

// What Python learns of a parameter. kind: p pointer, i integer, f real, h host memory by value, T W B number of items;
// size: its bytes, or for T W B the threads of a block.
struct Parameter { int32_t kind, size; };

template <class A> inline constexpr Parameter parameter{std::is_pointer_v<A> ? 'p' : std::is_same_v<A, float> || std::is_same_v<A, double> ? 'f' : 'i', sizeof(A)};
template <class A> inline constexpr Parameter parameter<const Inline<A>&>{'h', sizeof(A)};
template <int B> inline constexpr Parameter parameter<Threads<B>>{'T', B};
template <int B, int R> inline constexpr Parameter parameter<Warps<B, R>>{'W', B};
template <int B, int R> inline constexpr Parameter parameter<Blocks<B, R>>{'B', B};
template <class A> inline constexpr int resident = 1;
template <int B, int R> inline constexpr int resident<Warps<B, R>> = R;
template <int B, int R> inline constexpr int resident<Blocks<B, R>> = R;

// Threads of a block, and blocks at a time, of the parameter that says so
template <class... A> struct Block { static constexpr int value = 0, resident = 1; };
template <class A, class... Rest> struct Block<A, Rest...> {
  static constexpr bool counts = parameter<A>.kind == 'T' || parameter<A>.kind == 'W' || parameter<A>.kind == 'B';
  static constexpr int value = counts ? parameter<A>.size : Block<Rest...>::value;
  static constexpr int resident = counts ? ::polyfield::resident<A> : Block<Rest...>::resident;
};

// The arguments as a kernel receives them: one after the other, each at a multiple of eight bytes.
template <class A> struct Stored { using type = A; };
template <class A> struct Stored<const A&> { using type = A; };
template <class... A> struct Arguments {};
template <class A, class... Rest> struct Arguments<A, Rest...> {
  alignas(8) typename Stored<A>::type first;
  Arguments<Rest...> rest;
};
template <auto F, class... Done> PF_INLINE void call(const Arguments<>&, const Done&... done) { F(done...); }
template <auto F, class A, class... Rest, class... Done> PF_INLINE void call(const Arguments<A, Rest...>& left, const Done&... done) {
  call<F>(left.rest, done..., left.first);
}

template <auto F> struct Entry;
template <class... A, void (*F)(A...)> struct Entry<F> {
  using Packed = Arguments<A...>;
  struct Table { Parameter of[sizeof...(A)]; };
  static constexpr Table table{{parameter<A>...}};
  static constexpr int block = Block<A...>::value, resident = Block<A...>::resident;
  static_assert(block > 0, "an entry point takes its number of items as Threads, Warps or Blocks");
  static PF_INLINE void run(const Packed& arguments) { call<F>(arguments); }
};

}  // namespace polyfield

#if !defined(PF_KERNEL)  // tests define their own
#define PF_KERNEL(name, E)                                                                                   \
  extern "C" __constant__ E::Table name##_parameters = E::table;                                             \
  extern "C" __global__ void __launch_bounds__(E::block, E::resident) name(const __grid_constant__ E::Packed arguments) { \
    E::run(arguments);                                                                                       \
  }
#endif
#define POLYFIELD_OP(name, ...)                        \
  using name##_entry = ::polyfield::Entry<&__VA_ARGS__>; \
  PF_KERNEL(name, name##_entry)

#else

#include <utility>

namespace polyfield {

union Slot { int64_t integer; double real; void* pointer; };

template <class A> constexpr char kind() {
  return std::is_pointer_v<A> || is_inline<A> ? 'p' : std::is_floating_point_v<A> ? 'f' : 'i';
}
template <class A> A unpack(const Slot& s) {
  if constexpr (is_inline<A>) return *static_cast<std::remove_reference_t<A>*>(s.pointer);
  else if constexpr (std::is_pointer_v<A>) return static_cast<A>(s.pointer);
  else if constexpr (std::is_floating_point_v<A>) return static_cast<A>(s.real);
  else if constexpr (std::is_class_v<A>) return A{s.integer};
  else return static_cast<A>(s.integer);
}

struct Op {
  const char* name;
  const char* kinds;  // one letter per argument: p pointer, i integer, f real
  void (*call)(const Slot*);
  Op* next;
  inline static Op* head = nullptr;
  Op(const char* name_, const char* kinds_, void (*call_)(const Slot*)) : name(name_), kinds(kinds_), call(call_), next(head) { head = this; }
};

template <class... A> struct Signature {
  static constexpr char kinds[] = {kind<A>()..., 0};
  template <void (*F)(A...), std::size_t... I> static void apply(const Slot* s, std::index_sequence<I...>) { F(unpack<A>(s[I])...); }
  template <void (*F)(A...)> static void call(const Slot* s) { apply<F>(s, std::index_sequence_for<A...>{}); }
};
template <class... A> Signature<A...> signature_of(void (*)(A...));

}  // namespace polyfield

#define POLYFIELD_OP(name, ...)                                                                             \
  static ::polyfield::Op PF_JOIN(op_, __COUNTER__)(#name, decltype(::polyfield::signature_of(__VA_ARGS__))::kinds, \
                                                   &decltype(::polyfield::signature_of(__VA_ARGS__))::template call<__VA_ARGS__>);

#endif
