#include "config/reuse_start.h"

#include <climits>

#include "bicached/error.h"
#include "config/decode_defaults.h"
#include "config/model_defaults.h"

namespace bicached {
namespace {

/// Checkpoints whose reuse inside a request was measured by others, told by their sizes.
struct KnownCheckpoint {
  const char* family;
  int num_layers;
  int hidden_size;
  int vocab_size;
  IntraCache intra_cache;
  const char* reason;
};

constexpr KnownCheckpoint kKnown[] = {
    {"llada", 32, 4096, 126464, IntraCache::kDual,
     "the sizes are those of LLaDA-8B and LLaDA-1.5, for which the dual cache is published "
     "(arXiv 2505.22618), with a refresh every 16 forwards (arXiv 2606.07571)"},
    {"dream", 28, 3584, 152064, IntraCache::kDual,
     "the sizes are those of Dream-7B, for which the dual cache is published (arXiv 2505.22618); a "
     "refresh every 16 forwards is published for others (arXiv 2606.07571)"},
};

}  // namespace

InsidePlan default_plan(IntraCache intra_cache) {
  constexpr int kInterval = 16;  // arXiv 2606.07571
  switch (intra_cache) {
    case IntraCache::kNone: return {};
    case IntraCache::kAdaptive: return {intra_cache, kInterval, 1, 0};
    case IntraCache::kPrefix:
    case IntraCache::kDual: break;
  }
  return {intra_cache, kInterval, INT_MAX, 0};
}

std::string describe_plan(const InsidePlan& plan) {
  if (plan.intra_cache == IntraCache::kNone) return "no reuse inside a request";
  std::string text = "intra_cache " + intra_cache_name(plan.intra_cache) + ", refreshed after ";
  if (plan.refresh_commits != INT_MAX) {
    text += std::to_string(plan.refresh_commits) +
            (plan.refresh_commits == 1 ? " text token or " : " text tokens or ");
  }
  text += std::to_string(plan.refresh_interval) + " forwards";
  if (plan.refresh_depth > 0) text += " from layer " + std::to_string(plan.refresh_depth) + " on";
  return text;
}

ReuseStart load_reuse_start(const std::string& model_folder, const ModelInfo& model) {
  if (model.attention_block > 0) {
    return {{},
            false,
            "the model attends by blocks, so that what stands before the active one is kept as it "
            "is"};
  }
  const ModelDefaults defaults(model_folder);
  const std::string name = defaults.text("intra_cache");
  if (!name.empty()) {
    const std::optional<IntraCache> intra = intra_cache_of(name);
    if (!intra) {
      throw Error(ErrorCode::kInvalidModel, defaults.where("intra_cache") + "is \"" +
                                                name.substr(0, 64) +
                                                "\"; allowed is none, prefix, dual or adaptive");
    }
    ReuseStart start{default_plan(*intra), false, "generation_config.json of the model names it"};
    const auto take = [&](const char* key, int& value) {
      if (const auto number = defaults.number(key, key)) value = static_cast<int>(*number);
    };
    take("refresh_interval", start.plan.refresh_interval);
    take("refresh_commits", start.plan.refresh_commits);
    take("refresh_depth", start.plan.refresh_depth);
    start.plan.refresh_depth = std::min(start.plan.refresh_depth, model.num_layers);
    return start;
  }
  for (const KnownCheckpoint& known : kKnown) {
    if (known.family == model.family && known.num_layers == model.num_layers &&
        known.hidden_size == model.hidden_size && known.vocab_size == model.vocab_size) {
      return {default_plan(known.intra_cache), true, known.reason};
    }
  }
  return {};
}

}  // namespace bicached
