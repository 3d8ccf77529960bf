// A tensor as rows of its last dimension.
#pragma once

#include <vector>

#include "stable_abi.h"

namespace refiners {

struct Rows {
  std::vector<int64_t> lead;  // the dimensions before the last
  int64_t count = 1, features = 0;

  // The shape of a result with so many features.
  std::vector<int64_t> shape(int64_t result_features) const {
    std::vector<int64_t> sizes = lead;
    sizes.push_back(result_features);
    return sizes;
  }
};

inline Rows rows_of(const Tensor& x) {
  Rows rows;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) {
    rows.lead.push_back(x.size(i));
    rows.count *= x.size(i);
  }
  rows.features = x.size(x.dim() - 1);
  return rows;
}

// [rows, features], without gaps between the elements of a row; a copy only where there are some.
inline Tensor flatten_rows(const Tensor& x, const Rows& rows) {
  const Tensor flat = x.dim() == 2 ? x : torch::stable::reshape(x, {rows.count, rows.features});
  return rows.features == 1 || flat.stride(1) == 1 ? flat : torch::stable::contiguous(flat);
}

}  // namespace refiners
