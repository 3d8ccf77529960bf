// What this machine can do at most, measured rather than looked up.
#pragma once

#include <cstddef>
#include <string>

#include "json.h"

namespace refiners::bench {

struct Ceiling {
  double flops_per_second = 0;
  double bytes_per_second = 0;
  std::string how;  // one line: which instructions, how many threads

  // The shortest time in seconds for that much arithmetic and traffic, if the two overlap perfectly.
  double floor(double flops, double bytes) const;
};

// Independent fp32 multiply-adds in registers, on every available CPU at once, in the widest vectors that the CPU has.
// The best of several runs. `isa` receives the name of the instruction set.
double measure_fma_flops(std::string& isa);

// The same on one core, that of the calling thread, while the others do what they do.
double measure_core_fma_flops();

// A copy between two buffers of `bytes` each (0: four times the last-level cache, 1 GiB at most), every available CPU
// copying its slice. Counts the bytes read and the bytes written, as the copy of a GPU is counted. The best of several.
double measure_copy_bandwidth(std::size_t bytes = 0);

Ceiling measure_cpu_ceiling();

Json to_json(const Ceiling& ceiling);

}  // namespace refiners::bench
