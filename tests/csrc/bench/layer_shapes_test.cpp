#include "bench/layer_shapes.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <stdexcept>

#include "check.h"

using namespace refiners::bench;

namespace {

const std::string kTitle = "model,layers,rows,in_features,out_features,bias,count\n";

std::vector<LinearShape> parse(const std::string& text) {
  std::istringstream in(text);
  return read_linear_shapes(in, "t.csv");
}

}  // namespace

TEST(comments_are_skipped_and_rows_are_read) {
  const auto shapes = parse("# why\n" + kTitle + "m,q+k,8,4,2,0,3\n# more\nm,out,8,4,2,1,1\n");
  CHECK_EQ(shapes.size(), 2u);
  CHECK(shapes[0] == (LinearShape{"m", "q+k", 8, 4, 2, false, 3}));
  CHECK(shapes[1].bias);
}

TEST(a_mistake_is_named_with_its_line) {
  CHECK_EQ(MESSAGE_OF(std::runtime_error, parse("# c\n" + kTitle + "m,q,8,4,2,0\n")),
           "t.csv:3: expected 7 cells, got 6");
  CHECK_EQ(MESSAGE_OF(std::runtime_error, parse(kTitle + "m,q,8,0,2,0,1\n")),
           "t.csv:2: expected a whole number of at least 1, got '0'");
  CHECK_EQ(MESSAGE_OF(std::runtime_error, parse(kTitle + "m,q,8,4x,2,0,1\n")),
           "t.csv:2: expected a whole number of at least 1, got '4x'");
  CHECK_EQ(MESSAGE_OF(std::runtime_error, parse("a,b\n")),
           "t.csv:1: expected the title line 'model,layers,rows,in_features,out_features,bias,count'");
  CHECK_EQ(MESSAGE_OF(std::runtime_error, parse(kTitle)), "t.csv: no shapes");
  CHECK_EQ(MESSAGE_OF(std::runtime_error, load_linear_shapes("/nowhere", "m")), "cannot read /nowhere/m.csv");
}

TEST(limited_rows_merge_what_became_equal) {
  const auto limited = limit_rows({{"m", "a", 100, 4, 2, false, 1},
                                   {"m", "a", 50, 4, 2, false, 2},
                                   {"m", "a", 100, 4, 2, true, 4},
                                   {"m", "b", 5, 4, 2, false, 8}},
                                  50);
  CHECK_EQ(limited.size(), 3u);
  CHECK(limited[0] == (LinearShape{"m", "a", 50, 4, 2, false, 3}));
  CHECK_EQ(limited[1].count, 4);
  CHECK_EQ(limited[2].rows, 5);
}

TEST(a_selection_has_no_duplicates) {
  const auto once = select_linear_shapes(REFINERS_SHAPES_FOLDER, {"sd15"}, {64});
  CHECK_EQ(select_linear_shapes(REFINERS_SHAPES_FOLDER, {"sd15", "sd15"}, {64, 64}).size(), once.size());
  CHECK_EQ(select_linear_shapes(REFINERS_SHAPES_FOLDER, {"sd15", "sdxl"}, {64}).back().model, "sdxl");
  std::int64_t most = 0;
  for (const auto& shape : once) most = std::max(most, shape.rows);
  CHECK_EQ(most, 64);
}

TEST(a_shape_is_described_in_a_word) {
  CHECK_EQ(describe(LinearShape{"m", "q", 8, 4, 2, true, 1}), "m 8x4→2+b");
  CHECK_EQ(describe(LinearShape{"m", "q", 8, 4, 2, false, 1}), "m 8x4→2");
}

// The tables that are shipped: known counts of layers, and the arithmetic of one step, counted by hand in TFLOP.
TEST(the_shipped_tables_describe_the_models) {
  const std::map<std::string, std::pair<std::int64_t, double>> expected = {{"sd15", {184, 0.4666}},
                                                                           {"sdxl", {743, 8.7084}}};
  for (const auto& [model, facts] : expected) {
    std::int64_t layers = 0;
    double flops = 0;
    for (const auto& s : load_linear_shapes(REFINERS_SHAPES_FOLDER, model)) {
      CHECK_EQ(s.model, model);
      layers += s.count;
      flops += 2.0 * static_cast<double>(s.rows * s.in_features * s.out_features * s.count);
    }
    CHECK_EQ(layers, facts.first);
    CHECK_NEAR(flops / 1e12, facts.second, 1e-3);
  }
}
