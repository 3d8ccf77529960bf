// A JSON value that can be built and printed: what a report needs, no more.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace refiners::bench {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of insertion

  Json() : value_(nullptr) {}
  Json(std::same_as<bool> auto value) : value_(value) {}
  Json(std::integral auto value)
    requires(!std::same_as<decltype(value), bool>)
      : value_(static_cast<std::int64_t>(value)) {}
  Json(double value) : value_(value) {}  // JSON knows no infinity and no NaN: they print as null
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  // Appends a member. Throws std::logic_error if this is no object or has the key.
  Json& set(std::string key, Json value);

  // Appends an element. Throws std::logic_error if this is no array.
  Json& push(Json value);

  // The text, a level of nesting indented by `indent` spaces; 0 puts everything on one line.
  std::string dump(int indent = 2) const;

 private:
  void write(std::string& out, int indent, int depth) const;

  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> value_;
};

// `text` (UTF-8) as a JSON string, quotes included.
std::string quote(std::string_view text);

}  // namespace refiners::bench
