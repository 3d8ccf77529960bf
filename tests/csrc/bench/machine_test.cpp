#include "bench/machine.h"

#include <sstream>

#include "check.h"

using namespace refiners::bench;

namespace {

Cpu parse(const std::string& text) {
  std::istringstream in(text);
  return parse_cpuinfo(in);
}

}  // namespace

TEST(model_and_extensions_are_read) {
  const Cpu cpu = parse(
      "processor\t: 0\nmodel name\t: AMD EPYC: 7003\nflags\t\t: fpu avx2 avx amx_tile fma_not\n\n"
      "processor\t: 1\nmodel name\t: another\nflags\t\t: avx512f\n");
  CHECK_EQ(cpu.model, "AMD EPYC: 7003");
  CHECK(cpu.isa == (std::vector<std::string>{"avx", "avx2", "amx_tile"}));
}

TEST(the_first_of_several_names_counts) { CHECK_EQ(parse("model name : a\nmodel name : b\n").model, "a"); }

TEST(what_is_missing_stays_empty) {
  const Cpu cpu = parse("processor : 0\nno colon here\n: no key\n");
  CHECK_EQ(cpu.model, "");
  CHECK(cpu.isa.empty());
}

TEST(the_features_of_an_arm_cpu_are_read) {
  CHECK(parse("Features : fp asimd sve\n").isa == (std::vector<std::string>{"asimd", "sve"}));
}

TEST(this_machine_is_described) {
  const Machine machine = inspect_machine();
  CHECK(machine.cores >= 1);
  CHECK(machine.memory_bytes > 0);
  CHECK(machine.kernel.find(' ') != std::string::npos);
  CHECK(describe(machine).find(std::to_string(machine.cores) + " cores") != std::string::npos);
  CHECK(to_json(machine).dump(0).find("\"cores\": " + std::to_string(machine.cores) + ",") != std::string::npos);
  CHECK(load_average()[0] >= 0);
}
