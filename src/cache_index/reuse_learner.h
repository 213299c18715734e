#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "bicached/cache_report.h"
#include "bicached/request.h"
#include "cache_index/outcomes.h"

namespace bicached {

/// Requests that are alike as far as their own part of a plan goes: algorithm, and block and
/// generation length rounded up to powers of two ("threshold/32/64"). There are few of them.
std::string request_kind(const GenerateRequest& request);

/// Plans of the part that concerns the request alone, from careful to bold; `start` is one of them.
/// Step 0 reuses nothing.
std::vector<InsidePlan> inside_plans(int num_layers, const InsidePlan& start);

/// Learns which plan decides the same tokens as recomputing everything, from probes, within a
/// budget. Numbers only; engine thread only.
///
/// A plan has two parts, each a ladder of its own: what is reused *inside* the request, and the
/// depth at which a *shared* prefix is reused. Both are learned for a prefix (salts are part of it)
/// and kind of request: nothing that others found makes a plan safe. It can make the model's start
/// more careful: that one is watched over all requests of a kind.
///
/// **The budget** is an allowance in row-layers. Work done adds the share `probe_budget` to it,
/// work that reuse of prefixes saved adds a third; probes and the entries made for them take from
/// it, and what is not used fades. A probe begins only where the allowance covers it, so that
/// probes never cost more than this, whatever the traffic.
class ReuseLearner {
 public:
  struct Settings {
    int num_layers = 0;
    std::vector<int> depths;  // of the shared ladder: ascending, > 0
    ReuseStart start;
    double max_disagreement = 0;
    double probe_budget = 0;
    bool surveys = false;  // bicached profile: probes every request, all plans in turn
  };
  /// A request with the prefix it could share.
  struct Subject {
    Hash128 prefix;  // with its salt; 0 where nothing is shared
    std::string kind;
    int length = 0;      // T
    int prefix_len = 0;  // P; 0: nothing is shared
    int block_length = 0;
    int stored_depth = 0;          // layers of the prefix that are stored
    bool inside_is_given = false;  // that part is the client's or the operator's: not learned
  };
  /// A probe: of a step of the one ladder or the other.
  struct Trial {
    Subject subject;
    bool is_shared = false;
    int step = 0;
    double cost = 0;        // row-layers expected
    double entry_cost = 0;  // of the entry that has to be made first
    double total_cost = 0;  // of all probes that a proof still takes
    double score = 0;       // how often it would pay for them; 0: a plan in use is watched
  };

  explicit ReuseLearner(Settings settings);

  const InsidePlan& inside(const Hash128& prefix, const std::string& kind) const;
  const InsidePlan& inside_step(int step) const { return plans_[static_cast<size_t>(step)]; }
  /// Layers, 0 without proof.
  int depth(const Hash128& prefix, const std::string& kind) const;
  int depth_step(int step) const { return settings_.depths[static_cast<size_t>(step)]; }

  /// A request arrives that could share this prefix.
  void count_use(const Subject& subject);
  /// What this request is to be probed for now, if anything: where most is to be gained first, and
  /// nothing that does not pay for itself if the prefix goes on as it did.
  std::optional<Trial> next_trial(const Subject& subject);
  void begin(const Trial& trial);
  /// Nothing: it found nothing out. `spent`: row-layers it cost.
  void end(const Trial& trial, std::optional<bool> agrees, int64_t spent);
  /// A request has ended; `saved`: row-layers it did not run thanks to the shared prefix.
  void finish(const std::string& kind, const GenerationStats& stats, int64_t saved);
  /// An entry was made for a probe.
  void spend(int64_t row_layers) { allowance_ -= static_cast<double>(row_layers); }

  std::vector<PlanReport> report(const Hash128& prefix) const;
  std::vector<PlanReport> report_model() const;
  void forget() { *this = ReuseLearner(settings_); }

  /// What outlives a restart, JSON. `from_json` leaves out what does not fit this model's ladders
  /// and throws kInvalidSettings for a text that is none of ours.
  std::string to_json() const;
  void from_json(const std::string& text, const std::string& path);
  /// Grows with every request that ends.
  int64_t version() const { return version_; }

 private:
  /// Means over finished requests of a kind.
  struct Course {
    double num = 0;
    double forwards = 0, blocks = 0, text_forwards = 0;
  };
  struct Ladder {
    explicit Ladder(size_t num_steps) : outcomes(static_cast<int>(num_steps)) {}
    Outcomes outcomes;
    double uses = 0;
    double uses_since_probe = 0;
    double patience = 1;  // times the uses that are needed; grows while probes find nothing out
  };
  /// Both ladders.
  struct Ladders {
    Ladders(size_t num_plans, size_t num_depths) : inside(num_plans), shared(num_depths) {}
    Ladder& of(bool is_shared) { return is_shared ? shared : inside; }
    Ladder inside, shared;
  };
  struct Kind {
    Course course;
    Ladders all;  // over all prefixes: to watch the start by, and to be looked at
  };
  using Key = std::pair<Hash128, std::string>;
  struct Prefix {
    Key key;
    Ladders own;
  };
  using Prefixes = std::list<Prefix>;  // the one used last first

  int start_now(const std::string& kind) const;
  int inside_now(const Key& key) const;
  Kind& kind_of(const std::string& kind);
  Ladders& ladders_of(const Key& key);
  const Ladders* find(const Key& key) const;
  double work(const Subject& subject, const Course& course, const InsidePlan& plan,
              int depth) const;
  std::optional<Trial> consider(const Subject& subject, bool is_shared) const;
  std::optional<Trial> survey(const Subject& subject) const;
  PlanReport describe(const std::string& kind, const Ladders& ladders) const;

  Settings settings_;
  std::vector<InsidePlan> plans_;
  int start_step_ = 0;
  std::map<std::string, Kind> kinds_;
  Prefixes prefixes_;
  std::map<Key, Prefixes::iterator> by_key_;
  double allowance_ = 0;
  Trial claim_;  // the proof that is paid for first
  int64_t version_ = 0;
};

}  // namespace bicached
