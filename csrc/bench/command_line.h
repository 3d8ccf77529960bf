// The command line of a benchmark: `--name value` options, checked before any work.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace refiners::bench {

// A mistake of the user, told in one line.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A word is one of `choices`, or any text if there are none.
enum class Kind { word, words, positive_integers, positive_number };

struct Option {
  std::string name;      // "--rank"
  Kind kind;             // the plural ones take a comma-separated list
  std::string fallback;  // the value where the option is not given, empty for none
  std::string help;
  std::vector<std::string> choices = {};
};

class CommandLine {
 public:
  // Takes `--name value` and `--name=value`. Throws UsageError, its message one line that lists what would be valid.
  CommandLine(std::vector<Option> options, std::span<const std::string> arguments);

  // Each throws std::logic_error for an option that was never declared.
  const std::string& word(std::string_view name) const;
  std::vector<std::string> words(std::string_view name) const;
  std::vector<std::int64_t> integers(std::string_view name) const;
  double number(std::string_view name) const;

 private:
  const Option& option(std::string_view name) const;

  std::vector<Option> options_;
  std::map<std::string, std::string, std::less<>> values_;
};

// One paragraph per option: its name, what it takes, what it is without.
std::string describe(std::span<const Option> options);

// "a,b" -> {"a", "b"}; "" -> {}.
std::vector<std::string> split(std::string_view text, char separator);

}  // namespace refiners::bench
