// The two formats of 16 bits, as they lie in memory; also what names them where templates choose.
#pragma once
#include "standard.h"

namespace polyfield {

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

}  // namespace polyfield
