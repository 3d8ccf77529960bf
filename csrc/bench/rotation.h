// Several copies of the inputs of a benchmark, used in turn, so that none is still cached when its turn comes again.
#pragma once

#include <algorithm>
#include <cstddef>

namespace refiners::bench {

class Rotation {
 public:
  // As many copies of `bytes` as make twice `cache_bytes`, one at least, 256 at most.
  Rotation(std::size_t bytes, std::size_t cache_bytes)
      : copies_(std::clamp<std::size_t>((2 * cache_bytes + bytes - 1) / std::max<std::size_t>(bytes, 1), 1, 256)) {}

  std::size_t copies() const { return copies_; }
  std::size_t current() const { return current_; }
  void advance() { current_ = (current_ + 1) % copies_; }

 private:
  std::size_t copies_;
  std::size_t current_ = 0;
};

}  // namespace refiners::bench
