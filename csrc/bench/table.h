// An aligned plain-text table.
#pragma once

#include <string>
#include <vector>

namespace refiners::bench {

enum class Align { left, right };

struct Column {
  std::string title;
  Align align = Align::right;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns);

  // Throws std::invalid_argument unless there is one cell per column.
  void add_row(std::vector<std::string> cells);

  // A blank line before the next row.
  void add_gap();

  // Title line, rule, rows; no space at the end of a line. Widths count code points, so that "×" and "²" align.
  std::string text() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;  // an empty row is a gap
};

// A number with a fixed count of decimals: fixed(2.345, 1) is "2.3".
std::string fixed(double value, int decimals);

}  // namespace refiners::bench
