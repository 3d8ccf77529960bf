#include "bench/report.h"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "capture.h"
#include "check.h"

using namespace refiners::bench;

namespace {

const std::filesystem::path kFolder = std::filesystem::temp_directory_path();

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Finishes a report with one fact and one case; returns what it printed.
std::string finish(const std::string& table_path, const std::string& json_path) {
  Report report("bench", "bench --rank 8");
  report.add_fact("torch", "2.13");
  report.add_case(Json::Object{{"rank", 8}});
  const refiners::test::Capture out(std::cout);
  report.finish("THE TABLE\n", table_path, json_path);
  return out.text();
}

}  // namespace

TEST(the_table_file_holds_what_was_printed) {
  const auto path = kFolder / "refiners_report_test.txt";
  const std::string printed = finish(path, "");
  CHECK_EQ(read(path), printed);
  for (const char* expected : {"bench --rank 8", "torch        \"2.13\"", "load_before", "load_after", "THE TABLE"}) {
    CHECK(printed.find(expected) != std::string::npos);
  }
  std::filesystem::remove(path);
}

TEST(the_json_file_holds_facts_and_cases) {
  const auto path = kFolder / "refiners_report_test.json";
  finish("", path);
  const std::string json = read(path);
  for (const char* expected : {"\"command\": \"bench --rank 8\"", "\"torch\": \"2.13\"", "\"machine\": {",
                               "\"load_after\": [", "\"cases\": [\n    {\n      \"rank\": 8\n    }\n  ]"}) {
    CHECK(json.find(expected) != std::string::npos);
  }
  std::filesystem::remove(path);
}

TEST(a_summary_has_all_its_figures) {
  const std::vector samples{1.0, 2.0, 3.0};
  CHECK_EQ(to_json(summarize(samples)).dump(0),
           "{\"best\": 1, \"lower_quartile\": 1.5, \"median\": 2, \"upper_quartile\": 2.5, \"worst\": 3, "
           "\"spread\": 0.5, \"count\": 3}");
}

TEST(a_path_that_cannot_be_written_is_named) {
  CHECK_EQ(MESSAGE_OF(std::runtime_error, check_writable("/nowhere/x.json")), "cannot write /nowhere/x.json");
  CHECK_EQ(MESSAGE_OF(std::runtime_error, finish("/nowhere/x.txt", "")), "cannot write /nowhere/x.txt");
  check_writable("");
}
