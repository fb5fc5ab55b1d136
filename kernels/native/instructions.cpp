// Compiled once for each instruction set, with `ACCEL_SET` its name.
#include "attention.h"
#include "products.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

namespace accel {

const Kernels &JOIN(kernels_, ACCEL_SET)() {
  static const Kernels kernels = {TEXT(ACCEL_SET), give, normalise, gate, linear, nibbles, embed, write, attend, limit};
  return kernels;
}

} // namespace accel
