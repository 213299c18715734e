#pragma once

#include <string>
#include <vector>

#include "model/model_config.h"

namespace bicached {

/// A tensor that a checkpoint of a model holds, and what it is there for.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  TensorRole role;
  int layer = -1;
  int expert = -1;

  int64_t num_elements() const {
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    return count;
  }
};

/// All of them: those of the model, then layer by layer.
std::vector<TensorSpec> list_tensors(const ParsedModel& model);

}  // namespace bicached
