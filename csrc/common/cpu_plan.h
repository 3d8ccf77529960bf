// Who computes an operator that has one kernel on the CPU, and why. Pure host functions.
#pragma once

#include "cpu_features.h"

namespace refiners {

struct CpuPlan {
  bool kernel;  // else torch's functions
  const char* reason;
};

// For operators whose kernels are worth it wherever there are some.
constexpr CpuPlan choose_cpu_plan(CpuIsa isa, Dtype dtype, const char* gain) {
  if (dtype == Dtype::kOther) return {false, "no kernel for this dtype"};
  if (isa == CpuIsa::kPortable) return {false, "no instruction set with a kernel is in use"};
  return {true, gain};
}

// "kernel: reason" or "portable: reason", until the thread asks again.
const char* describe(const CpuPlan& plan);

}  // namespace refiners
