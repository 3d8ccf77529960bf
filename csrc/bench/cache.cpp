#include "cache.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "cpus.h"

namespace refiners::bench {
namespace {

constexpr std::size_t kMinFlush = std::size_t{64} << 20;
constexpr std::size_t kMaxFlush = std::size_t{1} << 30;

std::string first_word(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string word;
  in >> word;
  return word;
}

// "32768K" -> 33554432; 0 for what is no size.
std::size_t parse_size(const std::string& text) {
  const auto digits = text.find_first_not_of("0123456789");
  if (digits == 0 || text.empty()) return 0;
  const std::size_t number = std::stoull(text.substr(0, digits));
  const char unit = digits == std::string::npos ? '\0' : text[digits];
  return number << (unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0);
}

}  // namespace

std::size_t last_level_cache_bytes(const std::filesystem::path& cache) {
  std::size_t largest = 0;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(cache, none)) {
    if (first_word(entry.path() / "type") == "Instruction") continue;
    largest = std::max(largest, parse_size(first_word(entry.path() / "size")));
  }
  return largest;
}

CacheFlusher::CacheFlusher(std::size_t cache_bytes) : buffer_(std::clamp(2 * cache_bytes, kMinFlush, kMaxFlush)) {}

void CacheFlusher::flush() {
  ++value_;
  const std::size_t slices = available_cpus().size();
  run_on_each_cpu([&](std::size_t i) {
    const std::size_t begin = buffer_.size() * i / slices;
    const std::size_t end = buffer_.size() * (i + 1) / slices;
    // Written and read: memset may bypass the cache, a plain loop of reads may not.
    std::memset(buffer_.data() + begin, value_, end - begin);
    const volatile unsigned char* bytes = buffer_.data();
    for (std::size_t at = begin; at < end; at += 64) static_cast<void>(bytes[at]);
  });
}

}  // namespace refiners::bench
