#pragma once

#include <string>
#include <vector>

namespace bicached {

/// Share of the prefix in the canvas in percent, rounded half to even: the published r.
int ratio_percent(int prefix_len, int total_len);

/// Depth by ratio: that of the greatest `min_ratio_percent` <= r. Made offline (`bicached
/// profile`), read from configs/depth/<model>.json.
struct DepthTable {
  struct Step {
    int min_ratio_percent = 0;
    int depth = 0;
  };
  std::string model;
  int num_layers = 0;
  std::vector<Step> steps;  // ratios strictly ascending

  /// 0 below the first step: nothing is known to be safe there.
  int depth_at(int ratio) const;

  /// Throws kInvalidSettings naming file and key; `num_layers`: of the model it is for. Other keys
  /// of the file are for people.
  static DepthTable load(const std::string& path, int num_layers);
};

}  // namespace bicached
