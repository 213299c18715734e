#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/flag_values.h"
#include "app/model_folder.h"
#include "base/log.h"
#include "bicached/engine.h"
#include "bicached/load.h"
#include "lab/commands.h"
#include "lab/eval_data.h"
#include "lab/eval_policy.h"
#include "lab/eval_report.h"
#include "lab/eval_run.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

/// Lists are names by commas.
struct EvalOptions {
  std::string data;  // JSONL file of questions
  std::string policies = "off,measured";
  std::string families;          // empty: all
  std::string without_families;  // but not these
  std::string gen_length;        // empty: the file's
  std::string limit;             // empty: all
  std::string concurrency = "8";
  std::string rounds = "1";
  std::string warmup = "8";
  std::string json;  // file for the results; empty: none
  bool by_family = false;
};

/// The flags as numbers and lists.
struct EvalPlan {
  std::string data;
  std::vector<EvalPolicy> policies;
  EvalSelection selection;
  int gen_length = 0;  // 0: the file's
  int concurrency = 0;
  int num_rounds = 0;
  int num_warmup = 0;
};

EvalPlan read_plan(const EvalOptions& options, const ModelInfo& model) {
  constexpr int kMaxClients = 1024;  // a thread each
  EvalPlan plan;
  if (options.data.empty()) {
    throw Error(ErrorCode::kInvalidSettings, "no questions: name a JSONL file with --data",
                "--data");
  }
  plan.data = options.data;
  plan.policies = parse_eval_policies(options.policies, model.num_layers);
  plan.selection.families = split_names(options.families);
  plan.selection.without_families = split_names(options.without_families);
  if (!options.limit.empty()) plan.selection.limit = parse_count("--limit", options.limit);
  if (!options.gen_length.empty()) {
    plan.gen_length = parse_count("--gen-length", options.gen_length);
  }
  plan.concurrency = parse_count("--concurrency", options.concurrency, 1, kMaxClients);
  plan.num_rounds = parse_count("--rounds", options.rounds, 1, 1000);
  plan.num_warmup = parse_count("--warmup", options.warmup, 0);
  return plan;
}

void check_fits(const EvalTask& task, const ModelInfo& model) {
  const int num_prompt = static_cast<int>(task.request.prompt_ids.size());
  const int gen_length = task.request.gen_length;
  if (num_prompt + gen_length <= model.max_length) return;
  const bool is_prompt = num_prompt >= model.max_length;
  throw Error(ErrorCode::kInvalidSettings,
              task.where + ": " + (is_prompt ? "messages" : "gen_length") + ": the prompt has " +
                  std::to_string(num_prompt) + " tokens and " + std::to_string(gen_length) +
                  " are to be generated; the model's longest canvas is " +
                  std::to_string(model.max_length) + " tokens",
              is_prompt ? "messages" : "gen_length");
}

/// Questions as requests: rendered and encoded before any clock runs.
std::vector<EvalTask> make_tasks(const std::vector<EvalQuestion>& questions, const EvalPlan& plan,
                                 const TextTools& text, const DecodeSettings& defaults,
                                 const ModelInfo& model) {
  if (!text.chat_template) {
    throw Error(ErrorCode::kInvalidModel, "the model has no chat template, which eval needs");
  }
  std::vector<EvalTask> tasks;
  for (const EvalQuestion& question : questions) {
    const int of_file = question.gen_length > 0 ? question.gen_length : defaults.max_tokens;
    const std::string line = std::to_string(question.line);
    EvalTask task;
    task.answer = question.answer;
    task.where = plan.data + ":" + line;
    task.request = question_request(encode_question(question.messages, text, task.where), defaults,
                                    plan.gen_length > 0 ? plan.gen_length : of_file,
                                    question.id.empty() ? line : question.id);
    check_fits(task, model);
    tasks.push_back(std::move(task));
  }
  return tasks;
}

EngineSettings engine_settings(EngineSettings settings, int concurrency) {
  settings.max_running = std::max(settings.max_running, concurrency);
  settings.max_queued = std::max(settings.max_queued, concurrency);
  return settings;
}

/// All rounds of all policies in turn, so that a machine that slows down slows all alike.
std::vector<std::vector<EvalRun>> run_rounds(Engine& engine, const Tokenizer& tokenizer,
                                             const std::vector<EvalTask>& tasks,
                                             const EvalPlan& plan) {
  const auto run_plan = [&](const EvalPolicy& policy) {
    return EvalRunPlan{policy.label, eval_cache_params(policy), plan.concurrency};
  };
  if (plan.num_warmup > 0) {
    // The policy that does most: forwards of all kinds, entries too.
    EvalRunPlan warmup = run_plan(plan.policies.back());
    warmup.shows_progress = false;
    const size_t num = std::min(tasks.size(), static_cast<size_t>(plan.num_warmup));
    run_eval_policy(engine, tokenizer, std::span(tasks).first(num), warmup);
  }
  std::vector<std::vector<EvalRun>> rounds;
  for (int r = 0; r < plan.num_rounds; ++r) {
    std::vector<EvalRun>& round = rounds.emplace_back();
    for (const EvalPolicy& policy : plan.policies) {
      round.push_back(run_eval_policy(engine, tokenizer, tasks, run_plan(policy)));
    }
  }
  return rounds;
}

template <class T>
Json or_null(bool is_given, const T& value) {
  return is_given ? Json(value) : Json();
}

Json settings_json(const EvalPlan& plan, const DecodeSettings& decode, const CacheSettings& cache,
                   const ModelInfo& model) {
  Json json = {{"device", model.device},
               {"dtype", model.dtype},
               {"algorithm", decode.algorithm},
               {"steps", or_null(decode.steps > 0, decode.steps)},
               {"temperature", decode.temperature},
               {"gen_length", or_null(plan.gen_length > 0, plan.gen_length)},
               {"max_tokens", decode.max_tokens},
               {"block_length", decode.block_length},
               {"intra_cache", decode.intra_cache},
               {"refresh_interval", cache.refresh_interval},
               {"refresh_commits", cache.refresh_commits},
               {"refresh_depth", cache.refresh_depth},
               {"min_uses", cache.min_uses},
               {"min_prefix_len", cache.min_prefix_len},
               {"cache_bytes", cache.cache_bytes},
               {"max_disagreement", cache.max_disagreement},
               {"probe_budget", cache.probe_budget},
               {"state_dir", or_null(!cache.state_dir.empty(), cache.state_dir)},
               {"depth_table", cache.depth_table},
               {"concurrency", plan.concurrency},
               {"limit", or_null(plan.selection.limit > 0, plan.selection.limit)},
               {"families", plan.selection.families},
               {"without_families", plan.selection.without_families},
               {"rounds", plan.num_rounds},
               {"warmup", plan.num_warmup}};
  for (const auto& [name, value] : decode.params) json[name] = value;
  return json;
}

/// Opens the file for the results before the long part: a path that can't be written is told at
/// once, and what it held stays until there is something better.
void check_writable(const std::string& path) {
  if (path.empty() || std::ofstream(path, std::ios::app)) return;
  throw Error(ErrorCode::kInvalidSettings, "--json: " + path + " can't be written", "--json");
}

void write_json(const std::string& path, const Json& json) {
  std::ofstream file(path, std::ios::trunc);
  file << json.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
  file.close();
  if (file) return;
  throw Error(ErrorCode::kInvalidSettings, "--json: " + path + " can't be written", "--json");
}

int run_eval(const Settings& settings, const EvalOptions& options) {
  // A line for each stored prefix is for the log of a server; here it would bury the progress.
  if (settings.log.level == "info") log_setup("warn", settings.log.format);
  const ModelInfo model = inspect_model(settings.model);
  const EvalPlan plan = read_plan(options, model);
  const CacheSettings cache =
      eval_cache_settings(load_cache_settings(settings, model), plan.policies, model.num_layers);
  const DecodeSettings defaults = load_decode_defaults(settings, model);
  const TextTools text = load_text_tools(settings.model.path, model);
  const std::vector<EvalQuestion> questions =
      select_questions(read_eval_data(plan.data), plan.selection, plan.data);
  const std::vector<EvalTask> tasks = make_tasks(questions, plan, text, defaults, model);
  check_writable(options.json);

  Engine engine(load_with_progress(settings), engine_settings(settings.engine, plan.concurrency),
                cache);
  engine.start();
  const auto rounds = run_rounds(engine, *text.tokenizer, tasks, plan);

  std::vector<std::string> families;
  for (const EvalQuestion& question : questions) families.push_back(question.family);
  const EvalReport report = make_eval_report(rounds, families);
  std::printf("%zu questions of %s, model %s (%s, %s), %d at a time\n\n%s", tasks.size(),
              plan.data.c_str(), model.name.c_str(), model.device.c_str(), model.dtype.c_str(),
              plan.concurrency, eval_report_text(report, options.by_family).c_str());
  if (!options.json.empty()) {
    write_json(options.json, {{"model", model.name},
                              {"data", plan.data},
                              {"settings", settings_json(plan, defaults, cache, model)},
                              {"reference", report.runs[report.reference].policy},
                              {"runs", eval_report_json(report)}});
  }
  const bool has_failures =
      std::ranges::any_of(report.runs, [](const EvalSummary& run) { return run.num_failed > 0; });
  return has_failures ? 1 : 0;
}

}  // namespace

Command eval_command() {
  const auto options = std::make_shared<EvalOptions>();
  const char *questions = "Questions", *runs = "Runs", *output = "Output";
  Command command{"eval", "Accuracy and speed on questions, cache policies side by side",
                  [options](const Settings& settings) { return run_eval(settings, *options); }};
  command.flags = {
      {"--data", "JSONL file: messages, answer, gen_length, family", &options->data, questions,
       "FILE"},
      {"--limit", "The first so many only", &options->limit, questions},
      {"--families", "Only these", &options->families, questions, "A,B"},
      {"--without-families", "But not these", &options->without_families, questions, "A,B"},
      {"--gen-length", "Of every request; not the file's", &options->gen_length, questions},
      {"--policies", "Sides of the comparison: off, fixed:N, full, table, measured",
       &options->policies, runs},
      {"--concurrency", "Requests at a time", &options->concurrency, runs},
      {"--rounds", "All runs so often; speeds are medians", &options->rounds, runs},
      {"--warmup", "Questions before the first run, not counted", &options->warmup, runs},
      {"--by-family", "Answers by family too", &options->by_family, output},
      {"--json", "Results as JSON", &options->json, output, "FILE"},
  };
  command.setting_groups = kDecodingGroups;
  // --policies says the first two; the others are the server's alone.
  command.decides = {"cache_policy", "cache_depth", "pinned_prefixes"};
  return command;
}

}  // namespace bicached
