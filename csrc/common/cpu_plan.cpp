#include "cpu_plan.h"

#include <string>

namespace refiners {

const char* describe(const CpuPlan& plan) {
  static thread_local std::string text;
  text = std::string(plan.kernel ? "kernel: " : "portable: ") + plan.reason;
  return text.c_str();
}

}  // namespace refiners
