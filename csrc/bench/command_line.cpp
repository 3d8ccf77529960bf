#include "command_line.h"

#include <algorithm>
#include <charconv>

namespace refiners::bench {
namespace {

bool is_list(const Option& option) { return option.kind == Kind::words || option.kind == Kind::positive_integers; }

std::string join(const auto& items, const auto& text_of) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ", ") + text_of(item);
  return out;
}

// The whole of `text` as a number above 0, or 0.
template <class Number>
Number parse_positive(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value > 0 ? value : Number{};
}

std::string expected(const Option& option) {
  if (option.kind == Kind::positive_number) return "a number above 0";
  if (option.kind == Kind::positive_integers) return "whole numbers above 0, separated by commas";
  return (is_list(option) ? "any of " : "one of ") + join(option.choices, [](const auto& choice) { return choice; });
}

bool is_valid_item(const Option& option, const std::string& item) {
  if (option.kind == Kind::positive_number) return parse_positive<double>(item) > 0;
  if (option.kind == Kind::positive_integers) return parse_positive<std::int64_t>(item) > 0;
  return option.choices.empty() || std::ranges::find(option.choices, item) != option.choices.end();
}

void check(const Option& option, const std::string& value) {
  const auto items = is_list(option) ? split(value, ',') : std::vector<std::string>{value};
  const bool valid =
      !items.empty() && std::ranges::all_of(items, [&](const auto& i) { return is_valid_item(option, i); });
  if (!valid) throw UsageError(option.name + " must be " + expected(option) + "; got '" + value + "'");
}

}  // namespace

CommandLine::CommandLine(std::vector<Option> options, std::span<const std::string> arguments)
    : options_(std::move(options)) {
  for (const Option& option : options_) values_[option.name] = option.fallback;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto equals = arguments[i].find('=');
    const std::string name = arguments[i].substr(0, equals);
    const auto found = std::ranges::find(options_, name, &Option::name);
    if (found == options_.end()) {
      throw UsageError("unknown option '" + name + "'; expected " +
                       join(options_, [](const Option& o) { return o.name; }) + " or --help");
    }
    if (equals == std::string::npos && i + 1 == arguments.size()) {
      throw UsageError(name + " needs a value: " + (found->choices.empty() ? found->help : expected(*found)));
    }
    std::string value = equals == std::string::npos ? arguments[++i] : arguments[i].substr(equals + 1);
    check(*found, value);
    values_[name] = std::move(value);
  }
}

const Option& CommandLine::option(std::string_view name) const {
  const auto found = std::ranges::find(options_, name, &Option::name);
  if (found == options_.end()) throw std::logic_error("no such option: " + std::string(name));
  return *found;
}

const std::string& CommandLine::word(std::string_view name) const { return values_.find(option(name).name)->second; }

std::vector<std::string> CommandLine::words(std::string_view name) const { return split(word(name), ','); }

std::vector<std::int64_t> CommandLine::integers(std::string_view name) const {
  std::vector<std::int64_t> values;
  for (const auto& item : words(name)) values.push_back(parse_positive<std::int64_t>(item));
  return values;
}

double CommandLine::number(std::string_view name) const { return parse_positive<double>(word(name)); }

std::string describe(std::span<const Option> options) {
  std::string out;
  for (const Option& option : options) {
    const bool is_free_word = option.kind == Kind::word && option.choices.empty();
    out += "  " + option.name + " " + (is_free_word ? "TEXT" : is_list(option) ? "A,B,..." : "VALUE") + "\n";
    out += "      " + option.help;
    if (!is_free_word) out += ": " + expected(option);
    if (!option.fallback.empty()) out += " (default: " + option.fallback + ")";
    out += "\n";
  }
  return out;
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> items;
  while (!text.empty()) {
    const auto at = std::min(text.find(separator), text.size());
    items.emplace_back(text.substr(0, at));
    text.remove_prefix(std::min(at + 1, text.size()));
  }
  return items;
}

}  // namespace refiners::bench
