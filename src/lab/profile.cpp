#include "lab/profile.h"

#include <cstring>
#include <filesystem>
#include <memory>

#include "app/flag_values.h"
#include "base/replace_file.h"
#include "bicached/error.h"
#include "bicached/load.h"
#include "lab/commands.h"

namespace bicached {
namespace {

namespace fs = std::filesystem;

struct ProfileOptions {
  std::string by = "similarity";
  std::string data;        // JSONL file of conversations
  std::string threshold;   // empty: 0.97
  std::string out;         // file for the result; empty: by similarity, one named after the model
  std::string limit;       // empty: all
  std::string with_masks;  // empty: none
};

enum class Measure { kSimilarity, kDecisions };

Measure read_measure(const std::string& by) {
  if (by == "similarity") return Measure::kSimilarity;
  if (by == "decisions") return Measure::kDecisions;
  throw Error(ErrorCode::kInvalidSettings,
              "--by is '" + by + "'; allowed is similarity or decisions", "--by");
}

/// Where a table goes when nobody says: a name of its own, so that no other table is lost.
std::string default_out(const ModelInfo& model) {
  const std::string path = "configs/depth/" + model.name + ".json";
  if (!fs::exists(path)) return path;
  throw Error(ErrorCode::kInvalidSettings,
              path + " is there already; name it with --out to replace it", "--out");
}

void make_folder_of(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  std::error_code error;
  if (!folder.empty()) fs::create_directories(folder, error);
  if (!error && !fs::is_directory(path)) return;
  throw Error(ErrorCode::kInvalidSettings,
              "--out: " + path +
                  " can't be written: " + (error ? error.message() : std::string("it is a folder")),
              "--out");
}

void refuse_similarity_flags(const ProfileOptions& options, Measure measure) {
  if (measure == Measure::kSimilarity) return;
  for (const auto& [flag, value] : {std::pair("--threshold", &options.threshold),
                                    std::pair("--with-masks", &options.with_masks)}) {
    if (value->empty()) continue;
    throw Error(ErrorCode::kInvalidSettings,
                std::string(flag) + " is of --by similarity; with --by decisions it has no effect",
                flag);
  }
}

ProfilePlan read_plan(const ProfileOptions& options, Measure measure, const ModelInfo& model) {
  ProfilePlan plan;
  if (model.attention_block > 0) {
    throw Error(ErrorCode::kInvalidSettings,
                "model: " + model.name +
                    " attends by blocks; there a prefix is reused exactly at every depth, and "
                    "nothing is to be measured",
                "model");
  }
  if (options.data.empty()) {
    throw Error(ErrorCode::kInvalidSettings, "no conversations: name a JSONL file with --data",
                "--data");
  }
  plan.data = options.data;
  // Over 1 - 1e-4 rounding decides, and the first layer, whose K and V don't depend on the context,
  // could be left out.
  constexpr double kMaxThreshold = 0.9999;
  if (!options.threshold.empty()) {
    plan.threshold = parse_number<double>("--threshold", options.threshold);
  }
  if (!(plan.threshold >= 0 && plan.threshold <= kMaxThreshold)) {
    throw Error(ErrorCode::kInvalidSettings,
                "--threshold is " + options.threshold + "; allowed is 0 to 0.9999", "--threshold");
  }
  if (!options.with_masks.empty()) {
    plan.num_masks = parse_count("--with-masks", options.with_masks, 0);
  }
  refuse_similarity_flags(options, measure);
  plan.out = options.out;
  if (plan.out.empty() && measure == Measure::kSimilarity) plan.out = default_out(model);
  if (!plan.out.empty()) make_folder_of(plan.out);
  return plan;
}

}  // namespace

std::string describe_source(const ProfilePlan& plan, const ProfileData& data) {
  std::string text = fs::path(plan.data).filename().string() + ", " +
                     std::to_string(data.conversations.size()) + " conversations";
  if (data.num_without_prefix + data.num_too_long == 0) return text;
  return text + " (left out: " + std::to_string(data.num_without_prefix) +
         " with nothing before the last user message, " + std::to_string(data.num_too_long) +
         " too long)";
}

void write_result(const std::string& path, const std::string& text) {
  const int error = replace_file(path, text);
  if (error == 0) return;
  throw Error(ErrorCode::kInvalidSettings,
              "--out: " + path + " can't be written: " + std::strerror(error), "--out");
}

namespace {

int run_profile(const Settings& settings, const ProfileOptions& options) {
  const Measure measure = read_measure(options.by);
  const ModelInfo model = inspect_model(settings.model);
  const ProfilePlan plan = read_plan(options, measure, model);
  const int limit = options.limit.empty() ? 0 : parse_count("--limit", options.limit);
  const DecodeSettings defaults = load_decode_defaults(settings, model);
  const TextTools text = load_text_tools(settings.model.path, model);
  ProfileLengths lengths{defaults.max_tokens};
  if (measure == Measure::kSimilarity) lengths.num_masks = plan.num_masks;
  const ProfileData data = read_profile_data(plan.data, limit, text, model, lengths);
  if (measure == Measure::kDecisions) {
    return profile_decisions(settings, plan, data, defaults) == 0 ? 0 : 1;
  }
  profile_similarity(settings, plan, data);
  return 0;
}

}  // namespace

Command profile_command() {
  const auto options = std::make_shared<ProfileOptions>();
  const char* group = "Profile";
  Command command{"profile", "How deep prefixes can be reused, from a file of conversations",
                  [options](const Settings& settings) { return run_profile(settings, *options); }};
  command.flags = {
      {"--by",
       "similarity: a depth table, for the policy table; decisions: probes of every "
       "conversation, for the policy measured (needs --state-dir)",
       &options->by, group},
      {"--data", "JSONL file: messages and, if wanted, gen_length", &options->data, group, "FILE"},
      {"--out", "File for the result; configs/depth/MODEL.json", &options->out, group, "FILE"},
      {"--limit", "The first so many conversations only", &options->limit, group},
      {"--threshold", "similarity: layers above it are taken over; 0 to 0.9999, 0.97 if not given",
       &options->threshold, group},
      {"--with-masks", "similarity: so many masks after every conversation, as in a served canvas",
       &options->with_masks, group},
  };
  command.setting_groups = kDecodingGroups;
  // The policy is what is profiled, every conversation is probed, and --threshold is of similarity;
  // the decoding threshold still comes from the model, the environment or the file.
  command.decides = {"threshold", "cache_policy",    "cache_depth",  "depth_table",
                     "min_uses",  "pinned_prefixes", "probe_budget", "deterministic"};
  return command;
}

}  // namespace bicached
