// The linear layers of a model, read from the tables that `python -m refiners bench` ships.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

namespace refiners::bench {

// One problem, rows x in -> out, and how many layers of the model pose it.
struct LinearShape {
  std::string model;
  std::string layers;  // what they do: "self_attention.qkv+cross_attention.q"
  std::int64_t rows = 0;
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  bool bias = false;
  std::int64_t count = 0;

  bool operator==(const LinearShape&) const = default;
};

// Reads CSV with a title line; lines that begin with '#' are comments. Throws std::runtime_error naming `name` and the
// line that is wrong.
std::vector<LinearShape> read_linear_shapes(std::istream& csv, const std::string& name);

// Reads `folder`/<model>.csv. Throws std::runtime_error if it cannot be read.
std::vector<LinearShape> load_linear_shapes(const std::filesystem::path& folder, const std::string& model);

// The same shapes with at most `max_rows` rows; equal ones become one.
std::vector<LinearShape> limit_rows(const std::vector<LinearShape>& shapes, std::int64_t max_rows);

// The shapes of several models, each limit of rows in turn, without duplicates.
std::vector<LinearShape> select_linear_shapes(const std::filesystem::path& folder,
                                              const std::vector<std::string>& models,
                                              const std::vector<std::int64_t>& row_limits);

// "sdxl 1024x1280→10240+b": rows, in and out features, and whether there is a bias.
std::string describe(const LinearShape& shape);

}  // namespace refiners::bench
