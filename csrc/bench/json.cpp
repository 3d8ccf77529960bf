#include "json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace refiners::bench {
namespace {

// The shortest text that reads back as the same number.
std::string number(auto value) {
  std::array<char, 32> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  return {buffer.data(), end};
}

void new_line(std::string& out, int indent, int depth) {
  if (indent == 0) return;
  out += '\n';
  out.append(static_cast<std::size_t>(indent * depth), ' ');
}

// Writes `open item, item, ... close`; `write_item` writes one of the items.
void write_items(std::string& out, int indent, int depth, std::string_view brackets, const auto& items,
                 const auto& write_item) {
  out += brackets[0];
  bool first = true;
  for (const auto& item : items) {
    if (!std::exchange(first, false)) out += indent == 0 ? ", " : ",";
    new_line(out, indent, depth + 1);
    write_item(item);
  }
  if (!items.empty()) new_line(out, indent, depth);
  out += brackets[1];
}

}  // namespace

std::string quote(std::string_view text) {
  static constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (code < 0x20) {
      out += {'\\', 'u', '0', '0', kHex[code >> 4], kHex[code & 15]};
    } else {
      out += c;
    }
  }
  return out + '"';
}

Json& Json::set(std::string key, Json value) {
  auto* object = std::get_if<Object>(&value_);
  if (object == nullptr) throw std::logic_error("Json::set: not an object");
  const auto has_key = [&](const auto& member) { return member.first == key; };
  if (std::ranges::any_of(*object, has_key)) throw std::logic_error("Json::set: duplicate key " + quote(key));
  object->emplace_back(std::move(key), std::move(value));
  return *this;
}

Json& Json::push(Json value) {
  auto* array = std::get_if<Array>(&value_);
  if (array == nullptr) throw std::logic_error("Json::push: not an array");
  array->push_back(std::move(value));
  return *this;
}

std::string Json::dump(int indent) const {
  std::string out;
  write(out, indent, 0);
  return out;
}

void Json::write(std::string& out, int indent, int depth) const {
  if (const auto* object = std::get_if<Object>(&value_)) {
    write_items(out, indent, depth, "{}", *object, [&](const auto& member) {
      out += quote(member.first) + ": ";
      member.second.write(out, indent, depth + 1);
    });
  } else if (const auto* array = std::get_if<Array>(&value_)) {
    write_items(out, indent, depth, "[]", *array, [&](const Json& item) { item.write(out, indent, depth + 1); });
  } else if (const auto* text = std::get_if<std::string>(&value_)) {
    out += quote(*text);
  } else if (const auto* real = std::get_if<double>(&value_)) {
    out += std::isfinite(*real) ? number(*real) : "null";
  } else if (const auto* integer = std::get_if<std::int64_t>(&value_)) {
    out += number(*integer);
  } else if (const auto* truth = std::get_if<bool>(&value_)) {
    out += *truth ? "true" : "false";
  } else {
    out += "null";
  }
}

}  // namespace refiners::bench
