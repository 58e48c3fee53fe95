// The Python module of one instruction set: every POLYFIELD_OP of the kernel files, by name.
//
// call(name, *arguments) takes addresses and numbers as they are; cuda/native.py does the checking. The GIL is
// released while a kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "op.h"
#include "parallel.h"

namespace nb = nanobind;
using polyfield::Op;
using polyfield::Slot;

namespace {

const Op& find(const std::string& name) {
  static const auto table = [] {
    std::unordered_map<std::string, const Op*> t;
    for (Op* op = Op::head; op; op = op->next) t[op->name] = op;
    return t;
  }();
  auto it = table.find(name);
  if (it == table.end()) throw nb::key_error(name.c_str());
  return *it->second;
}

// An op bound to its name, so that the look-up is done once.
struct Call {
  const Op* op;
  void operator()(nb::args arguments) const {
    Slot slots[64];
    const std::size_t expected = std::char_traits<char>::length(op->kinds);
    if (arguments.size() != expected || expected > 64)
      throw nb::type_error((std::string(op->name) + ": expected " + std::to_string(expected) + " arguments (" + op->kinds +
                            "), got " + std::to_string(arguments.size())).c_str());
    for (std::size_t i = 0; i < expected; ++i) {
      if (op->kinds[i] == 'p') slots[i].pointer = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(arguments[i]));
      else if (op->kinds[i] == 'i') slots[i].integer = nb::cast<std::int64_t>(arguments[i]);
      else slots[i].real = nb::cast<double>(arguments[i]);
    }
    nb::gil_scoped_release release;
    op->call(slots);
  }
};

}  // namespace

NB_MODULE(POLYFIELD_MODULE, m) {
  nb::set_leak_warnings(false);  // bound ops live in a cache until the interpreter ends
  nb::class_<Call>(m, "Call").def("__call__", &Call::operator());
  m.def("op", [](const std::string& name) { return Call{&find(name)}; });
  m.def("kinds", [](const std::string& name) { return std::string(find(name).kinds); });
  m.def("names", [] {
    std::vector<std::string> names;
    for (Op* op = Op::head; op; op = op->next) names.push_back(op->name);
    return names;
  });
  m.def("threads", &polyfield::thread_count);
  m.attr("lanes") = POLYFIELD_LANES;
}
