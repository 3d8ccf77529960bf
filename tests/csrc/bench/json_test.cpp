#include "bench/json.h"

#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "check.h"

using namespace refiners::bench;

TEST(scalars_print_as_json) {
  CHECK_EQ(Json().dump(), "null");
  CHECK_EQ(Json(true).dump(), "true");
  CHECK_EQ(Json(false).dump(), "false");
  CHECK_EQ(Json(-7).dump(), "-7");
  CHECK_EQ(Json(9007199254740993).dump(), "9007199254740993");
  CHECK_EQ(Json("text").dump(), "\"text\"");
}

TEST(numbers_read_back_exactly) {
  for (const double value : {0.1, 1.0 / 3.0, 1e300, 5e-324, -2.5}) {
    CHECK_EQ(std::strtod(Json(value).dump().c_str(), nullptr), value);
  }
}

TEST(what_json_cannot_write_is_null) {
  CHECK_EQ(Json(std::numeric_limits<double>::infinity()).dump(), "null");
  CHECK_EQ(Json(std::numeric_limits<double>::quiet_NaN()).dump(), "null");
}

TEST(strings_are_escaped) {
  CHECK_EQ(quote("a\"b\\c"), "\"a\\\"b\\\\c\"");
  CHECK_EQ(quote("line\nnext\ttab"), "\"line\\nnext\\ttab\"");
  CHECK_EQ(quote(std::string("\x01\x1f\0", 3)), "\"\\u0001\\u001f\\u0000\"");
  CHECK_EQ(quote("1024², ×"), "\"1024², ×\"");
}

TEST(keys_are_escaped_and_keep_their_order) {
  CHECK_EQ(Json(Json::Object{}).set("b\"", 1).set("a", 2).dump(0), "{\"b\\\"\": 1, \"a\": 2}");
}

TEST(nesting_is_indented) {
  Json value{Json::Object{}};
  value.set("list", Json(Json::Array{}).push(1).push(Json::Object{}).push(Json::Array{}));
  CHECK_EQ(value.dump(2), "{\n  \"list\": [\n    1,\n    {},\n    []\n  ]\n}");
  CHECK_EQ(value.dump(0), "{\"list\": [1, {}, []]}");
}

TEST(mistakes_are_named) {
  Json object{Json::Object{{"a", 1}}};
  CHECK_EQ(MESSAGE_OF(std::logic_error, object.set("a", 2)), "Json::set: duplicate key \"a\"");
  CHECK_EQ(MESSAGE_OF(std::logic_error, object.push(2)), "Json::push: not an array");
  CHECK_EQ(MESSAGE_OF(std::logic_error, Json(1).set("a", 2)), "Json::set: not an object");
}
