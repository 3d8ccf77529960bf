#include <string>
#include <vector>

#include "bench/suite.h"

int main(int argc, char** argv) { return refiners::bench::run_suites(std::vector<std::string>(argv, argv + argc)); }
