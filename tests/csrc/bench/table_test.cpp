#include "bench/table.h"

#include <stdexcept>

#include "check.h"

using namespace refiners::bench;

TEST(columns_are_aligned) {
  Table table({{"shape", Align::left}, {"ms"}});
  table.add_row({"2x3", "1.5"});
  table.add_row({"1024x320", "12.25"});
  CHECK_EQ(table.text(),
           "shape        ms\n"
           "--------  -----\n"
           "2x3         1.5\n"
           "1024x320  12.25\n");
}

TEST(widths_count_code_points) {
  Table table({{"a"}, {"b"}});
  table.add_row({"×²", "1"});
  table.add_row({"xyz", "2"});
  CHECK_EQ(table.text(),
           "  a  b\n"
           "---  -\n"
           " ×²  1\n"
           "xyz  2\n");
}

TEST(lines_end_without_spaces) {
  Table table({{"name", Align::left}, {"note", Align::left}});
  table.add_row({"a", ""});
  table.add_gap();
  table.add_row({"b", "x"});
  CHECK_EQ(table.text(), "name  note\n----  ----\na\n\nb     x\n");
}

TEST(a_wrong_number_of_cells_is_refused) {
  Table table({{"a"}, {"b"}});
  CHECK_EQ(MESSAGE_OF(std::invalid_argument, table.add_row({"1"})), "Table::add_row: expected 2 cells, got 1");
}

TEST(fixed_rounds) {
  CHECK_EQ(fixed(2.345, 1), "2.3");
  CHECK_EQ(fixed(-0.06, 1), "-0.1");
  CHECK_EQ(fixed(10, 0), "10");
}
