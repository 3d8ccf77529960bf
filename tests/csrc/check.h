// The few assertions that the C++ tests need. A test file defines tests and nothing else; main() is here.
//
//   TEST(median_of_an_even_count_is_interpolated) { CHECK_EQ(summarize(samples).median, 2.5); }
#pragma once

#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace refiners::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline bool add(const char* name, void (*run)()) {
  cases().push_back({name, run});
  return true;
}

inline void fail(const char* file, int line, const std::string& message) {
  std::cerr << file << ':' << line << ": " << message << '\n';
  ++failures();
}

template <class Actual, class Expected>
void check_equal(const char* file, int line, const char* text, const Actual& actual, const Expected& expected) {
  if (actual == expected) return;
  std::ostringstream message;
  message << text << ": expected " << expected << ", got " << actual;
  fail(file, line, message.str());
}

inline void check_near(const char* file, int line, const char* text, double actual, double expected, double tolerance) {
  if (std::abs(actual - expected) <= tolerance) return;
  std::ostringstream message;
  message << text << ": expected " << expected << " within " << tolerance << ", got " << actual;
  fail(file, line, message.str());
}

// The message of the exception of that type that `run` throws; a failure if it throws none or another.
template <class Exception>
std::string message_of(const char* file, int line, const char* text, auto run) {
  try {
    run();
  } catch (const Exception& error) {
    return error.what();
  } catch (...) {
    fail(file, line, std::string(text) + ": threw another type");
    return "";
  }
  fail(file, line, std::string(text) + ": threw nothing");
  return "";
}

// A file without a test fails too: it would otherwise pass for ever.
inline int run_all() {
  for (const Case& test : cases()) {
    const int before = failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name, 0, std::string("unexpected exception: ") + error.what());
    }
    std::cout << (failures() == before ? "pass " : "FAIL ") << test.name << '\n';
  }
  return cases().empty() || failures() > 0 ? 1 : 0;
}

}  // namespace refiners::test

#define TEST(name)                                                                      \
  static void name();                                                                   \
  [[maybe_unused]] static const bool name##_added = ::refiners::test::add(#name, name); \
  static void name()

#define CHECK(condition) \
  if (!(condition)) ::refiners::test::fail(__FILE__, __LINE__, "expected " #condition)
#define CHECK_EQ(actual, expected) ::refiners::test::check_equal(__FILE__, __LINE__, #actual, (actual), (expected))
#define CHECK_NEAR(actual, expected, tolerance) \
  ::refiners::test::check_near(__FILE__, __LINE__, #actual, (actual), (expected), (tolerance))
#define MESSAGE_OF(exception, expression) \
  ::refiners::test::message_of<exception>(__FILE__, __LINE__, #expression, [&] { static_cast<void>(expression); })

int main() { return ::refiners::test::run_all(); }
