#include "kernel_switches.h"

#include <cstring>

namespace refiners {
namespace {

std::atomic<CpuIsa>& isa_in_use() {
  static std::atomic<CpuIsa> isa{best_cpu_isa(cpu_features())};
  return isa;
}

KernelSwitch*& first_switch() {
  static KernelSwitch* first = nullptr;
  return first;
}

}  // namespace

CpuIsa cpu_isa() { return isa_in_use().load(std::memory_order_relaxed); }

bool use_cpu_isa(CpuIsa isa) {
  if (isa < CpuIsa::kPortable || isa > best_cpu_isa(cpu_features())) return false;
  isa_in_use().store(isa, std::memory_order_relaxed);
  return true;
}

KernelSwitch::KernelSwitch(const char* operator_name) : name_(operator_name), next_(first_switch()) {
  first_switch() = this;
}

void use_kernels(const char* operator_name, bool on) {
  for (KernelSwitch* s = first_switch(); s != nullptr; s = s->next_) {
    if (std::strcmp(s->name_, operator_name) == 0) s->on_.store(on, std::memory_order_relaxed);
  }
}

}  // namespace refiners

// What python/refiners/ops/library.py calls through ctypes.
extern "C" {
__attribute__((visibility("default"))) int refiners_best_cpu_isa() {
  return static_cast<int>(refiners::best_cpu_isa(refiners::cpu_features()));
}
__attribute__((visibility("default"))) int refiners_use_cpu_isa(int isa) {
  return refiners::use_cpu_isa(static_cast<refiners::CpuIsa>(isa)) ? 0 : -1;
}
__attribute__((visibility("default"))) void refiners_use_kernels(const char* operator_name, int on) {
  refiners::use_kernels(operator_name, on != 0);
}
}
