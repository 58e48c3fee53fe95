// How a kernel's entry point becomes callable: POLYFIELD_OP("hash_encode_f32", hash_encode<float>).
//
// An entry point is a plain function of pointers and numbers that returns nothing. The macro adds it to a list
// which cpu/module.cpp hands to Python; arguments arrive in 8-byte slots and are unpacked by type here, so that a
// kernel file needs no line anywhere else, and knows nothing of Python or torch.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

namespace polyfield {

union Slot { int64_t integer; double real; void* pointer; };

template <class A> constexpr char kind() {
  return std::is_pointer_v<A> ? 'p' : std::is_floating_point_v<A> ? 'f' : 'i';
}
template <class A> A unpack(const Slot& s) {
  if constexpr (std::is_pointer_v<A>) return static_cast<A>(s.pointer);
  else if constexpr (std::is_floating_point_v<A>) return static_cast<A>(s.real);
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

#define PF_JOIN2(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN2(a, b)
#define POLYFIELD_OP(name, ...)                                                                             \
  static ::polyfield::Op PF_JOIN(op_, __COUNTER__)(name, decltype(::polyfield::signature_of(__VA_ARGS__))::kinds, \
                                                   &decltype(::polyfield::signature_of(__VA_ARGS__))::template call<__VA_ARGS__>);
