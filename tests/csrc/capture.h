// What a stream receives while an object of this class lives.
#pragma once

#include <ostream>
#include <sstream>
#include <string>

namespace refiners::test {

class Capture {
 public:
  explicit Capture(std::ostream& stream) : stream_(stream), original_(stream.rdbuf(text_.rdbuf())) {}
  ~Capture() { stream_.rdbuf(original_); }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::ostream& stream_;
  std::streambuf* original_;
};

}  // namespace refiners::test
