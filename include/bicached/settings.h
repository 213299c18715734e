#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bicached/request.h"
#include "bicached/unmasker.h"

namespace bicached {

/// Every setting of the program, declared once: name, default beside its reason, unit, range,
/// sentence. The JSON file (a flat object of these names), the environment (BICACHED_<NAME>), the
/// command line (--<name> with dashes), `--help` and docs/settings.md all come from the `visit`
/// functions; see src/config/settings_io.h. Names are unique over all groups.
///
/// A visitor has these members, called in the order of the declaration:
///
///     template <class Group> void group(const char* title, Group& settings);  // visits it
///     void field(name, std::string&, about);
///     void field(name, std::vector<std::string>&, about);
///     void field(name, bool&, about);
///     template <class Number> void field(name, Number&, Range, unit, about);  // both ends allowed
///     void choice(name, std::string&, std::initializer_list<const char*> names, about);
///
/// A choice that ends in ":N" takes a number there.
struct Range {
  double min;
  double max;
};

struct ModelSettings {
  std::string path;  // required: there is no model that everybody wants
  /// auto: bfloat16 where the device multiplies it natively, else float32.
  std::string dtype = "auto";
  std::string device = "auto";   // auto: the first CUDA card if there is one
  int num_threads = 0;           // 0: all CPUs; more only spins
  int64_t kv_cache_bytes = 0;    // 0: on a card what nothing else needs (see info)
  std::string weights = "auto";  // auto: the compute type; float8 rounds what was measured in it
  bool cuda_graphs = true;       // launching a forward's kernels one by one keeps a card waiting

  template <class V>
  void visit(V& v) {
    v.field("model", path,
            "Model folder in the Hugging Face layout, or the name of a repository in its cache.");
    v.choice("dtype", dtype, {"auto", "float32", "bfloat16"}, "Compute type of the forward.");
    v.choice("device", device, {"auto", "cpu", "cuda", "cuda:N"},
             "Where the model runs; cuda:0 is the first CUDA card that the process sees, and what "
             "cuda means.");
    v.field("num_threads", num_threads, Range{0, 1024}, "threads",
            "CPU threads; 0 = OMP_NUM_THREADS, else the CPUs that the process may use.");
    v.field("kv_cache_bytes", kv_cache_bytes, Range{0, 1e15}, "bytes",
            "Budget of the K/V pool; 0 = chosen from the memory that is free or allowed.");
    v.choice("weights", weights, {"auto", "bfloat16", "fp8"},
             "Type of the layers' matrices; fp8 needs a CUDA card of compute capability 8.9, and "
             "dtype bfloat16.");
    v.field("cuda_graphs", cuda_graphs, "On a CUDA card, short forwards run as CUDA graphs.");
  }
};

struct ServerSettings {
  std::vector<std::string> host{"127.0.0.1"};  // not the open network unless asked
  int port = 8080;
  std::string api_key_file;  // empty: no key needed
  std::string admin_key_file;
  std::string salt_by_key = "auto";            // two keys are two tenants
  std::vector<std::string> cors_origins{"*"};  // a page brings no key that it was not given
  std::vector<std::string> alias;              // further names of the model; "*" accepts any
  int64_t max_body_bytes = 4 << 20;            // a prompt of the longest canvas is far smaller
  int request_timeout_ms = 600000;             // longer than the slowest answer we know
  int keep_alive_ms = 5000;
  int ping_interval_ms = 15000;  // below the idle limit of common proxies
  int drain_timeout_ms = 30000;  // the grace period that process managers give
  int num_spare_threads = 8;     // /health and /metrics while everything else is busy
  // Not a setting:
  int max_threads = 0;  // what the machine lets the HTTP side start; 0: no bound

  template <class V>
  void visit(V& v) {
    v.field("host", host,
            "Addresses and names to listen on; a path that ends in .sock is a Unix socket.");
    v.field("port", port, Range{0, 65535}, "", "Port; 0 picks a free one.");
    v.field("api_key_file", api_key_file, "File with one API key a line; empty = open.");
    v.field("admin_key_file", admin_key_file,
            "File with keys that may also use /v1/cache and /config; without it a server's only "
            "key may.");
    v.choice("salt_by_key", salt_by_key, {"auto", "on", "off"},
             "Requests of different API keys share no prefix; auto: where there is more than one "
             "key.");
    v.field("cors_origins", cors_origins,
            "Origins whose pages may read answers in a browser; * = all, localhost = those of this "
            "machine, empty = none.");
    v.field("alias", alias, "More names the model answers to; * accepts any name.");
    v.field("max_body_bytes", max_body_bytes, Range{1024, 1 << 30}, "bytes",
            "Longest request body.");
    v.field("request_timeout_ms", request_timeout_ms, Range{1, 86400000}, "ms",
            "Time a request may take, queue included.");
    v.field("keep_alive_ms", keep_alive_ms, Range{0, 600000}, "ms", "Idle time of a connection.");
    v.field("ping_interval_ms", ping_interval_ms, Range{100, 600000}, "ms",
            "Comment ping of an idle stream.");
    v.field("drain_timeout_ms", drain_timeout_ms, Range{0, 86400000}, "ms",
            "After SIGTERM, time for running requests.");
    v.field("num_spare_threads", num_spare_threads, Range{2, 1024}, "threads",
            "HTTP threads beyond queue + running.");
  }
};

struct EngineSettings {
  int max_running = 0;            // canvases decoded together
  int max_queued = 64;            // canvases waiting; more is 429
  int max_rows_per_forward = 0;   // past it a forward only gets longer, not more efficient
  int max_age_ms = 2000;          // a request waiting longer goes before cheaper ones
  bool integrity_checks = false;  // finds defects of ours, at some microseconds a forward
  // Not a setting:
  int device_check_ms = 1000;  // between checks of a device that fails

  template <class V>
  void visit(V& v) {
    v.field("max_running", max_running, Range{0, 4096}, "canvases",
            "Canvases decoded together; 0 = 16, on a card 512 rows of their blocks, at most 128.");
    v.field("max_queued", max_queued, Range{1, 100000}, "canvases",
            "Canvases waiting; more get 429.");
    v.field("max_rows_per_forward", max_rows_per_forward, Range{0, 1 << 20}, "rows",
            "Rows of one packed forward; 0 = 4096, on a card up to 16384 as its memory allows.");
    v.field("max_age_ms", max_age_ms, Range{0, 600000}, "ms",
            "Work that waited longer goes before cheaper work.");
    v.field("integrity_checks", integrity_checks,
            "After every forward the accounts of K/V pool and stored prefixes are checked; the "
            "server ends when they are wrong.");
  }
};

/// Defaults of the request fields of the same names. -1 / empty: taken from the model's
/// generation_config.json, else the value in brackets.
struct DecodeSettings {
  int max_tokens = -1;  // [64]; a chat goes on from there
  /// Clients send fixed numbers that were chosen for longer contexts: most want what fits.
  std::string max_tokens_over_room = "cut";
  int steps = -1;                    // [one token a step]
  int block_length = -1;             // [the family's]
  std::string algorithm;             // [threshold if the model names one, else the family's]
  std::string schedule = "auto";     // the family's
  AlgorithmParams params;            // -1 or missing: [the algorithm's own default]
  double temperature = -1;           // [0: deterministic unless asked]
  std::string intra_cache = "auto";  // the model's start, or what was learned
  bool eos_early_stop = true;
  bool logits_eos_inf = false;
  bool confidence_eos_eot_inf = false;
  double cfg_scale = 0;  // guidance doubles the work
  // Not settings, of the model's generation_config.json:
  int longest_chat = 256;  // of a chat that names no max_tokens
  double top_p = 1, min_p = 0, repetition_penalty = 1;
  int top_k = 0, min_tokens = 0;

  template <class V>
  void visit(V& v) {
    v.field("max_tokens", max_tokens, Range{-1, 1 << 20}, "tokens",
            "Generation length; -1 = model's, else 64, and a chat goes on to 256 or its end.");
    v.choice("max_tokens_over_room", max_tokens_over_room, {"cut", "refuse"},
             "A request whose max_tokens don't fit behind its prompt: what fits, or 400.");
    v.field("steps", steps, Range{-1, 1 << 20}, "steps",
            "Denoising steps; -1 = model's, else one a token.");
    v.field("block_length", block_length, Range{-1, 1 << 20}, "tokens",
            "Block; -1 = model's, else the family's (LLaDA 32, Dream all).");
    v.field("algorithm", algorithm,
            "Decoding algorithm, of the table in docs/settings.md; empty = model's, else the "
            "family's.");
    v.choice(
        "schedule", schedule, {"auto", "even", "timesteps"},
        "Tokens a step: as many in each (LLaDA), or by Dream's walk in time; auto = family's.");
    v.field("temperature", temperature, Range{-1, 2}, "",
            "0 = most probable token; -1 = model's, else 0.");
    v.choice("intra_cache", intra_cache, {"auto", "none", "prefix", "dual", "adaptive"},
             "Reuse inside a request; auto: none with the cache policy off, else the plan's.");
    v.field("eos_early_stop", eos_early_stop, "Stop once all before the end token is decided.");
    v.field("logits_eos_inf", logits_eos_inf, "EOS is never chosen; a turn's end may be.");
    v.field("confidence_eos_eot_inf", confidence_eos_eot_inf,
            "Where the most probable positions go first, those with an end token go last.");
    v.field("cfg_scale", cfg_scale, Range{0, 100}, "",
            "Classifier-free guidance: away from what is likely without the prompt; 0 = off.");
    for (const UnmaskerParam& param : unmasker_params()) {
      const FieldLimit& limit = param.limit;
      double& value = params.try_emplace(limit.name, -1).first->second;
      v.field(limit.name, value, Range{-1, limit.max}, limit.unit, describe(param).c_str());
    }
  }
};

/// What of a plan is left to the model's start, or to what was learned.
inline constexpr int kPlansOwn = -1;

struct CacheSettings {
  std::string policy = "measured";  // needs no profile and reuses nothing before it knows
  int depth = 0;                    // of `fixed`
  std::string depth_table;          // of `table`
  static constexpr int64_t kMostChosenBytes = 1LL << 30;
  int64_t cache_bytes = -1;  // -1: kMostChosenBytes, or what memory allows
  int min_uses = 2;          // a prefix seen once is no shared prefix
  int min_prefix_len = 32;   // below this a look-up saves less than it costs
  int refresh_interval = kPlansOwn, refresh_commits = kPlansOwn, refresh_depth = kPlansOwn;
  std::vector<std::string> pinned_prefixes;
  std::string state_dir;
  double max_disagreement = 0.02;  // 24 probes without a difference prove a plan
  double probe_budget = 0.03;      // what nobody notices in a server's load
  bool deterministic = false;      // reuse is worth more to most than the same answer twice
  // Not settings:
  ReuseStart start;                 // of the model: load_reuse_start
  std::vector<int> more_depths;     // depths that eval compares besides
  bool state_is_read_only = false;  // eval starts from state_dir and leaves it as it is
  bool surveys = false;             // profile: every request is probed

  int64_t budget_bytes() const { return cache_bytes < 0 ? kMostChosenBytes : cache_bytes; }

  template <class V>
  void visit(V& v) {
    v.choice("cache_policy", policy, {"off", "fixed", "full", "table", "measured"},
             "How deep a shared prefix is reused.");
    v.field("cache_depth", depth, Range{0, 4096}, "layers", "Depth of the policy fixed.");
    v.field("depth_table", depth_table,
            "File of the policy table, as bicached-lab profile writes it; see configs/depth.");
    v.field(
        "cache_bytes", cache_bytes, Range{-1, 1e15}, "bytes",
        "Budget of stored prefixes, beside the K/V pool; -1 = 1 GiB, less where memory is short.");
    v.field("min_uses", min_uses, Range{1, 1000000}, "requests",
            "A prefix is stored once so many requests had it.");
    v.field("min_prefix_len", min_prefix_len, Range{1, 1 << 20}, "tokens",
            "Shorter prefixes are not reused.");
    v.field(
        "refresh_interval", refresh_interval, Range{-1, 1 << 20}, "forwards",
        "What a request reuses of its own forwards is recomputed after so many; -1 = the plan's.");
    v.field("refresh_commits", refresh_commits, Range{-1, 1 << 20}, "tokens",
            "The same after so many decided text tokens; 0 = no limit, -1 = the plan's.");
    v.field("refresh_depth", refresh_depth, Range{-1, 4096}, "layers",
            "It is recomputed from this layer on; -1 = the plan's.");
    v.field("pinned_prefixes", pinned_prefixes,
            "System prompts that are stored at start and never dropped; in a flag or variable one "
            "with commas would be several.");
    v.field("state_dir", state_dir,
            "Folder that keeps what probes found over a restart; empty = nothing is kept.");
    v.field(
        "max_disagreement", max_disagreement, Range{0, 1}, "",
        "measured: largest share of requests that may decide otherwise than without the cache.");
    v.field(
        "probe_budget", probe_budget, Range{0, 1}, "",
        "measured: share of the work that may go into probes, beside a third of what reuse saved.");
    v.field(
        "deterministic", deterministic,
        "Every request is decoded as with cache_policy off and without reuse of its own forwards.");
  }
};

struct LogSettings {
  std::string level = "info";
  std::string format = "text";
  std::string file;  // empty: standard error

  template <class V>
  void visit(V& v) {
    v.choice("log_level", level, {"debug", "info", "warn", "error"}, "Least severe line written.");
    v.choice("log_format", format, {"text", "json"}, "Form of a log line.");
    v.field("log_file", file,
            "File that lines are added to; opened anew on SIGHUP. Empty = standard error.");
  }
};

struct Settings {
  ModelSettings model;
  ServerSettings server;
  EngineSettings engine;
  DecodeSettings decode;
  CacheSettings cache;
  LogSettings log;

  template <class V>
  void visit(V& v) {
    v.group("Model", model);
    v.group("Server", server);
    v.group("Engine", engine);
    v.group("Decoding defaults", decode);
    v.group("Prefix cache", cache);
    v.group("Log", log);
  }
};

}  // namespace bicached
