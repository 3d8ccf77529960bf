#include "report.h"

#include <ctime>
#include <fstream>
#include <iostream>
#include <stdexcept>

#include "machine.h"

namespace refiners::bench {
namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::string text(20, '\0');
  text.resize(std::strftime(text.data(), text.size() + 1, "%Y-%m-%dT%H:%M:%SZ", &utc));
  return text;
}

Json load_json() {
  Json load{Json::Array{}};
  for (const double value : load_average()) load.push(value);
  return load;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  if (!(out << text).flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace

void check_writable(const std::string& path) {
  if (!path.empty() && !std::ofstream(path, std::ios::app)) throw std::runtime_error("cannot write " + path);
}

Json to_json(const Summary& summary) {
  return Json::Object{{"best", summary.best},     {"lower_quartile", summary.lower_quartile},
                      {"median", summary.median}, {"upper_quartile", summary.upper_quartile},
                      {"worst", summary.worst},   {"spread", summary.spread()},
                      {"count", summary.count}};
}

Report::Report(std::string benchmark, std::string command) {
  const Machine machine = inspect_machine();
  facts_.set("benchmark", benchmark).set("command", command).set("date", utc_now()).set("machine", to_json(machine));
  head_ = benchmark + "\n  machine      " + describe(machine) + "\n  command      " + command + "\n";
  add_fact("load_before", load_json());
}

void Report::add_fact(const std::string& name, Json value) {
  const std::string padding(name.size() < 13 ? 13 - name.size() : 1, ' ');
  head_ += "  " + name + padding + value.dump(0) + "\n";
  facts_.set(name, std::move(value));
}

void Report::finish(const std::string& tables, const std::string& table_path, const std::string& json_path) {
  add_fact("load_after", load_json());
  const std::string text = head_ + "\n" + tables;
  std::cout << text;
  if (!table_path.empty()) write_file(table_path, text);
  if (json_path.empty()) return;
  facts_.set("totals", std::move(totals_)).set("cases", std::move(cases_));
  write_file(json_path, facts_.dump() + "\n");
}

}  // namespace refiners::bench
