// Making the next call find a cold cache.
#pragma once

#include <cstddef>
#include <filesystem>
#include <vector>

namespace refiners::bench {

// The size of the largest data cache of CPU 0, from its sysfs description; 0 where there is none.
std::size_t last_level_cache_bytes(const std::filesystem::path& cache = "/sys/devices/system/cpu/cpu0/cache");

// Overwrites, on every CPU that this process may use, a buffer larger than all the caches together: nothing that was
// cached before a flush is cached after it.
class CacheFlusher {
 public:
  // Twice `cache_bytes`, so that a replacement that is not least-recently-used still evicts; 64 MiB at least (a virtual
  // machine may hide its caches), 1 GiB at most.
  explicit CacheFlusher(std::size_t cache_bytes = last_level_cache_bytes());

  void flush();
  std::size_t bytes() const { return buffer_.size(); }

 private:
  std::vector<unsigned char> buffer_;
  unsigned char value_ = 0;
};

}  // namespace refiners::bench
