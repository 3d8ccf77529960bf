#include "bench/cache.h"

#include <fstream>
#include <string>

#include "bench/rotation.h"
#include "check.h"

using namespace refiners::bench;

namespace {

// A folder that looks like /sys/devices/system/cpu/cpu0/cache.
class FakeSysfs {
 public:
  FakeSysfs() { std::filesystem::remove_all(path_); }
  ~FakeSysfs() { std::filesystem::remove_all(path_); }

  void add(const std::string& name, const std::string& type, const std::string& size) const {
    std::filesystem::create_directories(path_ / name);
    std::ofstream(path_ / name / "type") << type << '\n';
    std::ofstream(path_ / name / "size") << size << '\n';
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_ = std::filesystem::temp_directory_path() / "refiners_cache_test";
};

}  // namespace

TEST(the_largest_data_cache_counts) {
  FakeSysfs sysfs;
  sysfs.add("index0", "Data", "32K");
  sysfs.add("index1", "Instruction", "64M");
  sysfs.add("index2", "Unified", "512K");
  sysfs.add("index3", "Unified", "32768K");
  std::ofstream(sysfs.path() / "uevent") << "";
  CHECK_EQ(last_level_cache_bytes(sysfs.path()), std::size_t{32} << 20);
}

TEST(units_are_understood) {
  FakeSysfs sysfs;
  sysfs.add("index0", "Unified", "2M");
  CHECK_EQ(last_level_cache_bytes(sysfs.path()), std::size_t{2} << 20);
  sysfs.add("index1", "Unified", "garbage");
  CHECK_EQ(last_level_cache_bytes(sysfs.path()), std::size_t{2} << 20);
}

TEST(a_machine_that_hides_its_caches_has_none) {
  FakeSysfs sysfs;
  CHECK_EQ(last_level_cache_bytes(sysfs.path()), 0u);
}

TEST(the_flush_is_larger_than_the_cache) {
  constexpr std::size_t kMiB = 1 << 20;
  CHECK_EQ(CacheFlusher(100 * kMiB).bytes(), 200 * kMiB);
  CHECK_EQ(CacheFlusher(0).bytes(), 64 * kMiB);
  CHECK_EQ(CacheFlusher(900 * kMiB).bytes(), 1024 * kMiB);
  CacheFlusher flusher(0);
  flusher.flush();
  flusher.flush();
}

TEST(the_rotation_covers_the_cache_twice) {
  CHECK_EQ(Rotation(100, 1000).copies(), 20u);
  CHECK_EQ(Rotation(300, 1000).copies(), 7u);
  CHECK_EQ(Rotation(5000, 1000).copies(), 1u);
  CHECK_EQ(Rotation(1, 1000000).copies(), 256u);
}

TEST(the_rotation_returns_to_the_first_copy) {
  Rotation rotation(1000, 1000);
  CHECK_EQ(rotation.current(), 0u);
  rotation.advance();
  CHECK_EQ(rotation.current(), 1u);
  rotation.advance();
  CHECK_EQ(rotation.current(), 0u);
}
