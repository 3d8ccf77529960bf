#include "table.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>
#include <string_view>

namespace refiners::bench {
namespace {

// Code points of UTF-8 text: the bytes that do not continue one.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

void append_line(std::string& out, std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  out += line + '\n';
}

}  // namespace

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    throw std::invalid_argument("Table::add_row: expected " + std::to_string(columns_.size()) + " cells, got " +
                                std::to_string(cells.size()));
  }
  rows_.push_back(std::move(cells));
}

void Table::add_gap() { rows_.emplace_back(); }

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    widths.push_back(width(columns_[i].title));
    for (const auto& row : rows_) {
      if (!row.empty()) widths[i] = std::max(widths[i], width(row[i]));
    }
  }
  const auto line = [&](const auto& cell_of) {
    std::string out;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::string cell = cell_of(i);
      const std::string padding(widths[i] - width(cell), ' ');
      out += (i == 0 ? "" : "  ") + (columns_[i].align == Align::left ? cell + padding : padding + cell);
    }
    return out;
  };
  std::string out;
  append_line(out, line([&](std::size_t i) { return columns_[i].title; }));
  append_line(out, line([&](std::size_t i) { return std::string(widths[i], '-'); }));
  for (const auto& row : rows_) {
    append_line(out, row.empty() ? "" : line([&](std::size_t i) { return row[i]; }));
  }
  return out;
}

std::string fixed(double value, int decimals) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.*f", decimals, value);
  return buffer.data();
}

}  // namespace refiners::bench
