// Which instruction set this processor's steps are made with.
#include "model.h"
#include <cpuid.h>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <sys/syscall.h>
#include <unistd.h>

namespace accel {
namespace {

// Whether there are matrix registers (AMX) for 8-bit numbers, and the system lets this process use them.
bool matrix_registers() {
#ifdef ACCEL_AMX
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned tile = 1u << 24, int8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (tile | int8)) != (tile | int8)) return false;
  constexpr long request_permission = 0x1023, tile_data = 18; // Linux: Documentation/arch/x86/xstate.rst
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false; // the compiler knew none
#endif
}

} // namespace

const Kernels &kernels_here() {
  const char *asked = std::getenv("LANGCHAIN_ACCEL_INSTRUCTIONS");
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = avx2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef ACCEL_BF16
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
#else
  constexpr bool bf16 = false; // the compiler knew none
#endif
  const bool amx = bf16 && matrix_registers();
  const std::string name = asked && *asked ? asked : amx ? "amx" : bf16 ? "avx512bf16" : vnni ? "avx512vnni" : "avx2";
#ifdef ACCEL_AMX
  if (name == "amx" && amx) return kernels_amx();
#endif
#ifdef ACCEL_BF16
  if (name == "avx512bf16" && bf16) return kernels_avx512bf16();
#endif
  if (name == "amx_emulated" && vnni) return kernels_amx_emulated();
  if (name == "avx512vnni" && vnni) return kernels_avx512vnni();
  if (name == "avx2" && avx2) return kernels_avx2();
  throw std::runtime_error("this processor has no instructions " + name + "; the kernels need avx2 and fma");
}

} // namespace accel
