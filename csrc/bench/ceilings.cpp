#include "ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cache.h"
#include "cpus.h"
#include "fma_loop.h"
#include "timer.h"

namespace refiners::bench {
namespace {

constexpr int kRuns = 20;                           // a neighbour that takes a core must not lower the ceiling
constexpr std::int64_t kFmaIterations = 4'000'000;  // tens of milliseconds
constexpr std::size_t kMinCopy = std::size_t{64} << 20;
constexpr std::size_t kMaxCopy = std::size_t{1} << 30;

struct FmaVariant {
  const char* isa;
  FmaLoop loop;
  int vector_bytes;
};

FmaVariant widest_fma() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {"AVX-512", fma_loop_avx512, kAvx512Bytes};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"AVX2", fma_loop_avx2, kAvx2Bytes};
#endif
  return {"128-bit", fma_loop_portable, kPortableBytes};
}

double flops(const FmaVariant& variant) {
  return fma_flops_per_iteration(variant.vector_bytes) * static_cast<double>(kFmaIterations);
}

void run(const FmaVariant& variant) {
  // From 1, these stay near 1: neither denormal nor infinite.
  if (variant.loop(kFmaIterations, 0.999999f, 1e-6f) <= 0) throw std::logic_error("the chains must stay positive");
}

using Clock = std::chrono::steady_clock;

// Seconds from the moment the first CPU starts to the moment the last one ends: a sum of the rates of the CPUs would
// count work that did not happen at the same time. The best of several runs.
double best_time_on_all_cpus(std::size_t cpus, const std::function<void(std::size_t)>& work) {
  std::vector<Clock::time_point> starts(cpus);
  std::vector<Clock::time_point> ends(cpus);
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRuns; ++i) {
    run_on_each_cpu([&](std::size_t i) {
      starts[i] = Clock::now();
      work(i);
      ends[i] = Clock::now();
    });
    const std::chrono::duration<double> span = std::ranges::max(ends) - std::ranges::min(starts);
    best = std::min(best, span.count());
  }
  return best;
}

}  // namespace

double Ceiling::floor(double flops, double bytes) const {
  return std::max(flops / flops_per_second, bytes / bytes_per_second);
}

double measure_fma_flops(std::string& isa) {
  const FmaVariant variant = widest_fma();
  isa = variant.isa;
  const std::size_t cpus = available_cpus().size();
  const double seconds = best_time_on_all_cpus(cpus, [&](std::size_t) { run(variant); });
  return flops(variant) * static_cast<double>(cpus) / seconds;
}

double measure_core_fma_flops() {
  const FmaVariant variant = widest_fma();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRuns; ++i) {
    const Timer timer(CpuClock::thread);
    run(variant);
    best = std::min(best, timer.elapsed().wall);
  }
  return flops(variant) / best;
}

double measure_copy_bandwidth(std::size_t bytes) {
  if (bytes == 0) bytes = std::clamp(4 * last_level_cache_bytes(), kMinCopy, kMaxCopy);
  const std::vector<unsigned char> source(bytes, 1);
  std::vector<unsigned char> target(bytes, 2);
  const std::size_t cpus = available_cpus().size();
  const double seconds = best_time_on_all_cpus(cpus, [&](std::size_t i) {
    const std::size_t begin = bytes * i / cpus;
    const std::size_t end = bytes * (i + 1) / cpus;
    std::memcpy(target.data() + begin, source.data() + begin, end - begin);
  });
  return 2 * static_cast<double>(bytes) / seconds;
}

Ceiling measure_cpu_ceiling() {
  Ceiling ceiling;
  std::string isa;
  ceiling.flops_per_second = measure_fma_flops(isa);
  ceiling.bytes_per_second = measure_copy_bandwidth();
  ceiling.how = "fp32 multiply-adds in registers (" + isa + ") and a memory copy, " +
                std::to_string(available_cpus().size()) + " threads, best of " + std::to_string(kRuns);
  return ceiling;
}

Json to_json(const Ceiling& ceiling) {
  return Json::Object{{"gflops_per_second", ceiling.flops_per_second / 1e9},
                      {"gbytes_per_second", ceiling.bytes_per_second / 1e9},
                      {"how", ceiling.how}};
}

}  // namespace refiners::bench
