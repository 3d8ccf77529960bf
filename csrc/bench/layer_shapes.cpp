#include "layer_shapes.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <stdexcept>

#include "command_line.h"

namespace refiners::bench {
namespace {

constexpr std::string_view kTitle = "model,layers,rows,in_features,out_features,bias,count";

std::int64_t parse_count(const std::string& text, std::int64_t least) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) {
    throw std::runtime_error("expected a whole number of at least " + std::to_string(least) + ", got '" + text + "'");
  }
  return value;
}

LinearShape parse_row(const std::string& line) {
  const auto cells = split(line, ',');
  if (cells.size() != 7) throw std::runtime_error("expected 7 cells, got " + std::to_string(cells.size()));
  return {cells[0],
          cells[1],
          parse_count(cells[2], 1),
          parse_count(cells[3], 1),
          parse_count(cells[4], 1),
          parse_count(cells[5], 0) != 0,
          parse_count(cells[6], 1)};
}

}  // namespace

std::vector<LinearShape> read_linear_shapes(std::istream& csv, const std::string& name) {
  std::vector<LinearShape> shapes;
  bool titled = false;
  std::string line;
  for (int number = 1; std::getline(csv, line); ++number) {
    if (line.empty() || line.front() == '#') continue;
    try {
      if (titled) {
        shapes.push_back(parse_row(line));
      } else if (line != kTitle) {
        throw std::runtime_error("expected the title line '" + std::string(kTitle) + "'");
      }
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(name + ":" + std::to_string(number) + ": " + error.what());
    }
    titled = true;
  }
  if (shapes.empty()) throw std::runtime_error(name + ": no shapes");
  return shapes;
}

std::vector<LinearShape> load_linear_shapes(const std::filesystem::path& folder, const std::string& model) {
  const auto path = folder / (model + ".csv");
  std::ifstream csv(path);
  if (!csv) throw std::runtime_error("cannot read " + path.string());
  return read_linear_shapes(csv, path.string());
}

std::vector<LinearShape> limit_rows(const std::vector<LinearShape>& shapes, std::int64_t max_rows) {
  std::vector<LinearShape> limited;
  for (LinearShape shape : shapes) {
    shape.rows = std::min(shape.rows, max_rows);
    const auto same = std::ranges::find_if(limited, [&](LinearShape other) {
      other.count = shape.count;
      return other == shape;
    });
    if (same == limited.end()) {
      limited.push_back(shape);
    } else {
      same->count += shape.count;
    }
  }
  return limited;
}

std::vector<LinearShape> select_linear_shapes(const std::filesystem::path& folder,
                                              const std::vector<std::string>& models,
                                              const std::vector<std::int64_t>& row_limits) {
  std::vector<LinearShape> shapes;
  for (const auto& model : models) {
    const auto all = load_linear_shapes(folder, model);
    for (const auto limit : row_limits) {
      for (const auto& shape : limit_rows(all, limit)) {
        if (std::ranges::find(shapes, shape) == shapes.end()) shapes.push_back(shape);
      }
    }
  }
  return shapes;
}

std::string describe(const LinearShape& shape) {
  return shape.model + " " + std::to_string(shape.rows) + "x" + std::to_string(shape.in_features) + "→" +
         std::to_string(shape.out_features) + (shape.bias ? "+b" : "");
}

}  // namespace refiners::bench
