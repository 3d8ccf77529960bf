// The outcome of a run: what it was measured on, the figures, as a table for people and as JSON for programs.
#pragma once

#include <string>

#include "json.h"
#include "stats.h"
#include "table.h"

namespace refiners::bench {

class Report {
 public:
  // Reads the machine and its load at once: before the benchmark itself loads it.
  Report(std::string benchmark, std::string command);

  // A fact about the run ("torch", "device", ...), printed above the table and kept in the JSON.
  void add_fact(const std::string& name, Json value);

  void add_case(Json value) { cases_.push(std::move(value)); }
  void add_total(Json value) { totals_.push(std::move(value)); }

  // Reads the load again. Prints to standard output; writes the files whose paths are not empty. Throws
  // std::runtime_error if a file cannot be written.
  void finish(const std::string& tables, const std::string& table_path, const std::string& json_path);

 private:
  Json facts_{Json::Object{}};
  std::string head_;
  Json cases_{Json::Array{}};
  Json totals_{Json::Array{}};
};

Json to_json(const Summary& summary);

// Throws std::runtime_error if `path` cannot be written; call it before a long run whose result goes there.
void check_writable(const std::string& path);

}  // namespace refiners::bench
