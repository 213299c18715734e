#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "app/model_folder.h"
#include "base/version.h"
#include "bicached/engine.h"
#include "bicached/error.h"
#include "bicached/load.h"
#include "config/engine_defaults.h"
#include "config/reuse_start.h"
#include "engine/cache_json.h"
#include "lab/eval_data.h"
#include "lab/profile.h"
#include "lab/progress.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

/// Conversations that may share an entry, in the order of the file. One of them runs at a time: of
/// requests that run together with the same prefix only one is probed.
using Lane = std::deque<GenerateRequest>;

/// By the shortest prefix that conversations can share.
std::vector<Lane> make_lanes(const ProfileData& data, const DecodeSettings& defaults) {
  std::map<std::vector<TokenId>, Lane> by_prefix;
  for (const ProfileConversation& one : data.conversations) {
    const auto begin = one.chat.ids.begin();
    by_prefix[{begin, begin + one.chat.prefix_lengths.front()}].push_back(
        question_request(one.chat, defaults, one.gen_length, one.where));
  }
  std::vector<Lane> lanes;
  for (auto& [prefix, lane] : by_prefix) lanes.push_back(std::move(lane));
  return lanes;
}

/// Decodes all and waits for them. Tells on standard error what failed, and returns how many.
int decode_all(Engine& engine, const std::vector<GenerateRequest>& requests) {
  int num_failed = 0;
  const auto tell = [&](const GenerateRequest& request, const std::string& why) {
    ++num_failed;
    std::fprintf(stderr, "%s: %s\n", request.id.c_str(), why.c_str());
  };
  std::vector<std::pair<const GenerateRequest*, ResponseStream>> streams;
  for (const GenerateRequest& request : requests) {
    try {
      streams.emplace_back(&request, engine.submit({request}));
    } catch (const Error& error) {
      tell(request, error.what());
    }
  }
  for (auto& [request, stream] : streams) {
    while (const auto update = stream.next()) {
      if (update->finish == FinishReason::kError) tell(*request, update->error_message);
    }
  }
  return num_failed;
}

/// Stores what of each conversation others may share, so that it finds an entry and is probed.
void warm_prefixes(Engine& engine, const std::vector<GenerateRequest>& requests) {
  std::vector<std::pair<const GenerateRequest*, std::future<void>>> warmed;
  const auto tell = [](const GenerateRequest& request, const Error& error) {
    std::fprintf(stderr, "%s is not probed: %s\n", request.id.c_str(), error.what());
  };
  for (const GenerateRequest& request : requests) {
    const auto begin = request.prompt_ids.begin();
    try {
      warmed.emplace_back(&request,
                          engine.warm_prefix({begin, begin + request.prefix_boundaries.back()}));
    } catch (const Error& error) {
      tell(request, error);
    }
  }
  for (auto& [request, done] : warmed) {
    try {
      done.get();
    } catch (const Error& error) {
      tell(*request, error);
    }
  }
}

/// Decodes one conversation of up to `max_running` lanes at a time; returns how many failed.
int run_lanes(Engine& engine, std::vector<Lane> lanes, size_t max_running) {
  size_t total = 0, num_done = 0;
  for (const Lane& lane : lanes) total += lane.size();
  Progress progress("profile", static_cast<int64_t>(total), "conversations");
  std::deque<Lane> waiting(std::make_move_iterator(lanes.begin()),
                           std::make_move_iterator(lanes.end()));
  int num_failed = 0;
  while (!waiting.empty()) {
    std::vector<GenerateRequest> requests;
    for (size_t left = std::min(max_running, waiting.size()); left > 0; --left) {
      Lane lane = std::move(waiting.front());
      waiting.pop_front();
      requests.push_back(std::move(lane.front()));
      lane.pop_front();
      if (!lane.empty()) waiting.push_back(std::move(lane));
    }
    warm_prefixes(engine, requests);
    num_failed += decode_all(engine, requests);
    num_done += requests.size();
    progress.show(static_cast<int64_t>(num_done),
                  std::to_string(engine.cache_stats().probes) + " probes");
  }
  return num_failed;
}

CacheSettings probing(CacheSettings settings) {
  if (settings.state_dir.empty()) {
    throw Error(ErrorCode::kInvalidSettings,
                "profile --by decisions fills the statistics of a server: name the folder that the "
                "server keeps them in with --state-dir",
                "state_dir");
  }
  settings.policy = "measured";
  settings.surveys = true;
  settings.min_uses = 1;  // here every prefix is one that comes again
  return settings;
}

void print_probes(const CacheReport& report) {
  for (const PlanReport& kind : report.model_probes) {
    std::printf("\n%s\n  %8s %8s %9s  plan\n", kind.kind.c_str(), "probed", "differed", "estimate");
    for (const PlanReport::Step& step : kind.steps) {
      const double probed = step.agreed + step.differed;
      if (probed == 0) continue;
      const std::string plan =
          step.depth ? "prefix from other requests, depth " + std::to_string(*step.depth)
                     : describe_plan(*step.inside);
      std::printf("  %8.1f %8.1f %8.1f%%  %s\n", probed, step.differed, 100 * step.estimate,
                  plan.c_str());
    }
  }
}

Json report_json(const CacheReport& report, const CacheSettings& cache, const ProfilePlan& plan,
                 const ProfileData& data, const ModelInfo& model) {
  Json json;
  json["model"] = model.name;
  json["num_layers"] = model.num_layers;
  json["measure"] = "share of requests that would have decided another token than without reuse";
  json["max_disagreement"] = cache.max_disagreement;
  json["source"] = "bicached " + std::string(version()) + " profile, " + model.dtype + "; " +
                   describe_source(plan, data);
  json["probes"] = report.probes;
  json["kinds"] = Json::array();
  for (const PlanReport& probe : report.model_probes) {
    json["kinds"].push_back(probe_json(probe));
  }
  return json;
}

}  // namespace

int profile_decisions(const Settings& settings, const ProfilePlan& plan, const ProfileData& data,
                      const DecodeSettings& defaults) {
  const ModelInfo model = inspect_model(settings.model);
  const CacheSettings cache = probing(load_cache_settings(settings, model));
  const EngineSettings running = resolve_engine_defaults(settings.engine, model);
  std::vector<Lane> lanes = make_lanes(data, defaults);
  Engine engine(load_with_progress(settings), running, cache);
  if (::access(cache.state_dir.c_str(), W_OK) != 0) {
    throw Error(ErrorCode::kInvalidSettings,
                "state_dir is '" + cache.state_dir + "', which can't be written: " +
                    std::error_code(errno, std::generic_category()).message(),
                "state_dir");
  }
  engine.start();
  const int max_running = std::min(running.max_running, running.max_queued);
  const int num_failed = run_lanes(engine, std::move(lanes), static_cast<size_t>(max_running));
  const CacheReport report = engine.cache_report(0);
  std::printf("%s; %lld probes\n", describe_source(plan, data).c_str(),
              static_cast<long long>(report.probes));
  print_probes(report);
  if (!plan.out.empty()) {
    const Json json = report_json(report, cache, plan, data, engine.model());
    write_result(plan.out, json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
    std::printf("\nwritten to %s\n", plan.out.c_str());
  }
  engine.stop(std::chrono::milliseconds(settings.server.drain_timeout_ms));
  std::printf("the statistics are in %s; serve with --state-dir %s\n", cache.state_dir.c_str(),
              cache.state_dir.c_str());
  return num_failed;
}

}  // namespace bicached
