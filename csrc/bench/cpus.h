// The CPUs that this process may run on, and work placed on each of them.
#pragma once

#include <functional>
#include <vector>

namespace refiners::bench {

// Their numbers, as the scheduler knows them.
std::vector<int> available_cpus();

// Calls work(0), ..., work(n - 1) at the same time, call i on the i-th available CPU. The calls begin together.
// The first exception that one of them throws is thrown again here.
void run_on_each_cpu(const std::function<void(std::size_t)>& work);

}  // namespace refiners::bench
