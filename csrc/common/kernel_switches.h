// Which kernels run: the instruction set in use, and a switch for each operator. Python sets them, tests turn them.
#pragma once

#include <atomic>

#include "cpu_features.h"

namespace refiners {

// The instruction set that the CPU kernels use: the best at first.
CpuIsa cpu_isa();

// False, and nothing changes, for one that this CPU or this build lacks.
bool use_cpu_isa(CpuIsa isa);

// One for each operator, at namespace scope of its bindings; on at first.
class KernelSwitch {
 public:
  explicit KernelSwitch(const char* operator_name);
  bool on() const { return on_.load(std::memory_order_relaxed); }

 private:
  friend void use_kernels(const char*, bool);
  const char* name_;
  KernelSwitch* next_;
  std::atomic<bool> on_{true};
};

// Turns all switches of an operator.
void use_kernels(const char* operator_name, bool on);

}  // namespace refiners
