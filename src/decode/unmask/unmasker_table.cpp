#include "bicached/error.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

constexpr UnmaskerInfo kTable[] = {
    {"low_confidence", "A fixed number of tokens a step, most probable first (LLaDA).",
     make_low_confidence},
    {"threshold", "Every token whose probability reaches the threshold, at least one (Fast-dLLM).",
     make_threshold},
    {"factor", "As many as their probabilities justify together (Fast-dLLM, dInfer).", make_factor},
};

}  // namespace

std::span<const UnmaskerInfo> unmasker_table() { return kTable; }

std::vector<std::string> unmasker_names() {
  std::vector<std::string> names;
  for (const UnmaskerInfo& info : kTable) names.emplace_back(info.name);
  return names;
}

std::unique_ptr<Unmasker> make_unmasker(const DecodeParams& params) {
  std::string known;
  for (const UnmaskerInfo& info : kTable) {
    if (params.algorithm == info.name) return info.make(params);
    known += known.empty() ? info.name : std::string(", ") + info.name;
  }
  throw Error(ErrorCode::kInvalidRequest,
              "algorithm: there is no '" + params.algorithm + "'; known: " + known, "algorithm");
}

}  // namespace bicached
