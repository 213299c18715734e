#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace bicached {

using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

/// How a token is drawn from a row of logits. temperature 0 = the most probable token, ties to the
/// lowest id; else a draw from softmax(logits / temperature) after top-k and top-p.
struct SamplingParams {
  float temperature = 0.0f;   // [0, 2]
  float top_p = 1.0f;         // [0, 1]; 1 = off, 0 = the most probable token
  int top_k = 0;              // >= 0; 0 = off
  float min_p = 0.0f;         // [0, 1]; share of the most probable token's probability; 0 = off
  uint64_t seed = 0;          // with (forward, position) the only source of randomness
  int num_top_logprobs = -1;  // -1: no log-probabilities; 0..20: that many alternatives a token
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to the logits; [-100, 100]
  std::vector<TokenId> allowed_tokens;                // no others are chosen; empty: all are
  TokenId forced = kNoToken;  // taken whatever the logits say: its probability is asked for
  // Of tokens decided so far; the last one of given tokens too (vLLM's definitions).
  float frequency_penalty = 0.0f;   // [-2, 2]; taken off a logit for each time
  float presence_penalty = 0.0f;    // [-2, 2]; taken off once
  float repetition_penalty = 1.0f;  // (0, 100]; divides a positive logit, multiplies a negative one

  bool has_penalties() const {
    return frequency_penalty != 0 || presence_penalty != 0 || repetition_penalty != 1;
  }
};

/// Which rows a request leaves out of a forward, their K/V being those of an earlier one of its
/// own: none; those before the active block (Fast-dLLM prefix cache) or all outside it (dual cache)
/// until the next block; or all outside it until a refresh is due (`Reuse`).
enum class IntraCache { kNone, kPrefix, kDual, kAdaptive };

/// What a request reuses of its own forwards: which rows a forward leaves out, and when and from
/// which layer on they are recomputed. The other part of a plan is the depth at which it reuses a
/// prefix of other requests.
///
/// What is reused is recomputed (a *refresh*) after `refresh_interval` forwards or
/// `refresh_commits` committed text tokens, from layer `refresh_depth` on. End tokens don't count:
/// a quota decoder commits them first, and the decisions that follow them are those of recomputed
/// states.
struct InsidePlan {
  IntraCache intra_cache = IntraCache::kNone;
  int refresh_interval = 1;  // forwards; >= 1
  int refresh_commits = 1;   // committed text tokens; >= 1
  int refresh_depth = 0;     // layers
  bool operator==(const InsidePlan&) const = default;
};

/// The plan that a model starts from before anything is known of its traffic.
struct ReuseStart {
  InsidePlan plan;            // as without reuse, unless something better is known
  bool is_published = false;  // of a known checkpoint: what probes prove is added to it
  std::string reason = "nothing is known of this model";
};

/// How many positions the steps of a block decide, for algorithms that go by a quota.
/// kEven (LLaDA): of m masks and S steps each decides m / S, the first m mod S steps one more.
/// kTimesteps (Dream): of the n masks that are left, those that a walk in time from 1 down to `eps`
/// passes on: floor(n (1 - s / t)) from time t to s, and all that are left in the last step.
enum class Schedule { kEven, kTimesteps };

/// What the forward at the start of a block decides under a prefix or dual cache. All but kDecides
/// are for comparison with published engines.
enum class FirstForward {
  kDecides,        // as any other
  kDiscarded,      // nothing: a second forward over the block decides (BiCache; the same tokens)
  kFirstPosition,  // the block's first position, whatever the algorithm (Fast-dLLM for Dream)
};

/// Numbers of decoding algorithms by name, e.g. {"threshold", 0.9}.
using AlgorithmParams = std::map<std::string, double, std::less<>>;

/// How the canvas is filled. The fields' ranges are in config/settings and http/codec.
struct DecodeParams {
  std::string algorithm = "low_confidence";  // a name of unmasker_table()
  int steps = 64;                    // denoising steps of the whole request (quota algorithms)
  std::optional<Schedule> schedule;  // nothing: the model family's
  int block_length = 32;             // generation positions decoded together
  AlgorithmParams params;            // of the algorithm; what is missing has its default
  bool eos_early_stop = true;  // finish once all before the first committed end token is decided
  bool ignore_eos = false;     // the model's end tokens are never chosen
  std::vector<TokenId> stop_tokens;  // end the text as the model's end tokens do
  int min_tokens = 0;                // no end or stop token at the first so many positions
  /// Sequences of tokens that are never completed, in whatever order positions are decided.
  std::vector<std::vector<TokenId>> bad_words;
  bool logits_eos_inf = false;  // the model's first end token, EOS, is never chosen (LLaDA)
  /// End tokens are as unlikely as can be when positions are compared: chosen last (LLaDA).
  bool confidence_eos_eot_inf = false;
  /// Classifier-free guidance: u + (cfg_scale + 1) (c - u) of the logits c and those without the
  /// prompt, u. 0: none, and half the work.
  float cfg_scale = 0.0f;
  std::optional<IntraCache> intra_cache;  // nothing: what suits the cache policy
  FirstForward first_forward = FirstForward::kDecides;
  /// Steps whose quota is 0 still cost a forward, as in the references. For comparison only.
  bool run_empty_steps = false;
};

/// Reuse of a shared prefix's K/V, for one request (DESIGN 6). What is left open is the server's
/// choice (`CacheSettings`).
struct CacheParams {
  std::string policy;                   // a name of depth_policy_table(); empty: the server's
  std::optional<int> depth;             // policy `fixed`
  std::optional<int> refresh_interval;  // forwards; >= 1
  std::optional<int> refresh_commits;   // committed text tokens; >= 1
  std::optional<int> refresh_depth;     // layers
  bool refresh_by_step_modulo = false;  // parity with the published engine: step % interval == 0
  std::optional<int> prefix_len;        // tokens shared with other requests; 0: nothing
  std::string salt;                     // requests with different salts never share an entry
  bool deterministic = false;           // as with the policy off, and nothing of its own reused
};

/// One canvas to decode: prompt, masks, suffix. Validated by whoever makes it (HTTP codec, command
/// line); the engine trusts it.
struct GenerateRequest {
  std::string id;                   // for logs
  std::vector<TokenId> prompt_ids;  // P tokens
  int gen_length = 64;              // G generation positions after the prompt, masked
  int max_text = 0;                 // of them become text; 0: all
  std::vector<TokenId> suffix_ids;  // infilling: tokens after the masks
  /// Several gaps: G tokens, -1 where a generation position is masked. Empty: all are. An end token
  /// in a gap ends that gap's text alone.
  std::vector<TokenId> given;
  /// While no end token is decided the canvas grows, a block at a time, up to so many generation
  /// positions. Only without a suffix; at most gen_length: it doesn't grow.
  int grows_to = 0;
  SamplingParams sampling;
  DecodeParams decode;
  CacheParams cache;
  std::vector<int> prefix_boundaries;  // candidate prefix lengths (ends of messages), ascending
  bool wants_canvas = false;           // publish the whole canvas after every forward
  bool wants_end = false;              // publish the token that ends the text, too
  std::optional<std::chrono::steady_clock::time_point> deadline;

  int longest_generation() const { return gen_length > grows_to ? gen_length : grows_to; }
  /// T, as long as the canvas may become.
  int longest_canvas() const {
    return static_cast<int>(prompt_ids.size() + suffix_ids.size()) + longest_generation();
  }
  int text_limit() const { return max_text > 0 ? max_text : longest_generation(); }
};

/// Alternatives at a position when log-probabilities were asked for.
struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;  // natural log
};

/// A decided position. `logprob` is of the model's distribution at the forward that decided it.
struct DecidedToken {
  int position = 0;  // in the canvas
  TokenId token = 0;
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;  // most probable first; empty unless asked for
  bool is_given = false;          // not decided: it stands between two gaps
  bool is_end = false;            // no text: the token that ended it
};

/// What a request cost and reused so far.
struct GenerationStats {
  int prompt_tokens = 0;
  int completion_tokens = 0;  // before the end token
  int cached_tokens = 0;      // prefix tokens taken from a shared entry
  int num_forwards = 0;
  int num_refreshes = 0;
  int num_blocks = 0;         // blocks begun
  int num_text_forwards = 0;  // forwards that decided a text token
  int64_t row_layers = 0;     // sum over row groups of rows * layers run: cost without units
  int prefix_len = 0;
  int depth = 0;
  int refresh_depth = 0;
  std::string cache = "off";  // "hit", "miss", "off"
  int64_t queued_us = 0;
  int64_t first_token_us = 0;  // from submit; 0 until there is one
};

enum class FinishReason { kNone, kStop, kLength, kError };

/// What the engine tells about one canvas after a forward that decided something new on the left.
struct GenerationUpdate {
  int index = 0;  // which canvas of the submitted list
  /// Newly final generation tokens in canvas order: everything to their left is decided. Cut before
  /// an end token, which is there only with `wants_end`.
  std::vector<DecidedToken> tokens;
  /// Only with `wants_canvas`: the G generation positions as they stand, -1 where masked.
  std::vector<TokenId> canvas;
  GenerationStats stats;
  FinishReason finish = FinishReason::kNone;  // not kNone: the last update of this canvas
  std::string error_message;                  // with kError
  int error_code = 0;                         // an ErrorCode, with kError
};

}  // namespace bicached
