#include <cstdio>

#include "base/text_list.h"
#include "bicached/error.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {

std::span<const UnmaskerInfo> unmasker_table() {
  static const std::vector<UnmaskerInfo> table{
      low_confidence_unmasker(),  random_unmasker(),
      threshold_unmasker(),       factor_unmasker(),
      topk_margin_unmasker(),     entropy_unmasker(),
      maskgit_plus_unmasker(),    origin_unmasker(),
      quota_threshold_unmasker(), entropy_bound_unmasker(),
      klass_unmasker(),           low_confidence_dynamic_unmasker(),
      joint_threshold_unmasker(), entropy_multi_block_unmasker(),
  };
  return table;
}

std::vector<std::string> unmasker_names() {
  std::vector<std::string> names;
  for (const UnmaskerInfo& info : unmasker_table()) names.emplace_back(info.name);
  return names;
}

std::span<const UnmaskerParam> unmasker_params() {
  static const std::vector<UnmaskerParam> all = [] {
    std::vector<UnmaskerParam> params;
    for (const UnmaskerInfo& info : unmasker_table()) {
      for (const UnmaskerParam& param : info.params) {
        const bool is_known = std::ranges::any_of(params, [&](const UnmaskerParam& other) {
          return std::string_view(other.limit.name) == param.limit.name;
        });
        if (!is_known) params.push_back(param);
      }
    }
    return params;
  }();
  return all;
}

std::string describe(const UnmaskerParam& param) {
  std::string users;
  for (const UnmaskerInfo& info : unmasker_table()) {
    for (const UnmaskerParam& other : info.params) {
      if (std::string_view(other.limit.name) != param.limit.name) continue;
      users += (users.empty() ? "Of `" : ", `") + std::string(info.name) + "`";
    }
  }
  char number[32];
  std::snprintf(number, sizeof number, "%g", param.default_value);
  return users + ": " + param.about + "; -1 = model's, else " + number + ".";
}

std::unique_ptr<Unmasker> make_unmasker(const DecodeParams& params) {
  for (const UnmaskerInfo& info : unmasker_table()) {
    if (params.algorithm == info.name) return info.make(params);
  }
  throw Error(
      ErrorCode::kInvalidRequest,
      "algorithm: there is no '" + params.algorithm + "'; known: " + joined(unmasker_names()),
      "algorithm");
}

}  // namespace bicached
