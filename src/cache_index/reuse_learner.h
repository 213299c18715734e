#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/lru_map.h"
#include "bicached/cache_report.h"
#include "bicached/request.h"
#include "bicached/settings.h"
#include "cache_index/outcomes.h"

namespace bicached {

/// Requests that are alike as far as their own part of a plan goes: algorithm, and block and
/// generation length rounded up to powers of two ("threshold/32/64"). There are few of them.
std::string request_kind(const GenerateRequest& request);

/// Plans of the part that concerns the request alone, from careful to bold; `start` is one of them.
/// Step 0 reuses nothing.
std::vector<InsidePlan> inside_plans(int num_layers, const InsidePlan& start);

/// Learns from probes, within a budget, which plan decides the same tokens as more careful ones do.
/// Numbers only; engine thread only.
///
/// A plan has two parts, each a ladder of its own: what is reused *inside* the request, and the
/// depth at which a *shared* prefix is reused. Both are learned for a prefix (salts are part of it)
/// and kind of request: nothing that others found makes a plan safe. It can make the model's start
/// more careful: that one is watched over all requests of a kind.
///
/// **The budget** is an allowance in row-layers. Work done adds the share `probe_budget` to it, and
/// what reuse saved adds a third: reuse of prefixes, and plans inside a request that are bolder
/// than the model's start, where it is known what the start would have cost. Probes and the entries
/// made for them take from it, and what is not used fades. A probe begins only where the allowance
/// covers it, so that probes never cost more than this, whatever the traffic.
class ReuseLearner {
 public:
  /// A request with the prefix it could share.
  struct Subject {
    Hash128 prefix;  // with its salt; 0 where nothing is shared
    std::string kind;
    int length = 0;      // T
    int prefix_len = 0;  // P; 0: nothing is shared
    int block_length = 0;
    int stored_depth = 0;          // layers of the prefix that are stored
    bool counts_steps = false;     // its algorithm: any plan takes as many forwards
    bool has_quota = false;        // its algorithm: decides what it is unsure of
    bool inside_is_given = false;  // that part is the client's or the operator's: not learned
    InsidePlan inside = {};        // of such a request
  };
  /// A probe compares two plans that differ in one part, this ladder's: the one that is tried has
  /// this `step` of it. The other part is what is in use.
  struct Trial {
    Subject subject;
    bool is_shared = false;
    /// The step is compared with the one in use, which is more careful. Else with nothing of this
    /// part: what is in use is watched (or, in a survey, any step).
    bool is_proof = false;
    int step = 0;
    double cost = 0;        // row-layers expected, beyond those of a request that is not probed
    double entry_cost = 0;  // of the entry that has to be made first
    double total_cost = 0;  // of all probes that a proof still takes
    double score = 0;       // how often it would pay for them
  };

  /// `depths`: of the shared ladder, ascending, > 0. `settings` outlives it.
  ReuseLearner(const CacheSettings& settings, int num_layers, std::vector<int> depths);

  const InsidePlan& inside(const Hash128& prefix, const std::string& kind) const;
  const InsidePlan& inside_step(int step) const { return plans_[static_cast<size_t>(step)]; }
  /// Layers, 0 without proof.
  int depth(const Hash128& prefix, const std::string& kind) const;
  int depth_step(int step) const { return depths_[static_cast<size_t>(step)]; }

  /// A request arrives that could share this prefix.
  void count_use(const Subject& subject);
  /// What this request is to be probed for now, if anything. What is in use comes first, then what
  /// most is to be gained from, and nothing that does not pay for itself if the prefix goes on as
  /// it did.
  std::optional<Trial> next_trial(const Subject& subject);
  void begin(const Trial& trial);
  /// Nothing: it found nothing out. `spent`: row-layers it cost.
  void end(const Trial& trial, std::optional<bool> agrees, int64_t spent);
  /// It was given up on the way, and says nothing of its plan.
  void drop(const Trial& trial, int64_t spent);
  /// A request has ended that ran this plan; `saved`: row-layers it did not run thanks to the
  /// shared prefix.
  void finish(const Subject& subject, const GenerationStats& stats, const InsidePlan& inside,
              int depth, int64_t saved);
  /// An entry was made for a probe.
  void spend(int64_t row_layers) { allowance_ -= static_cast<double>(row_layers); }

  /// Stands for all prefixes together.
  static constexpr Hash128 kEveryPrefix{~uint64_t{0}, ~uint64_t{0}};
  /// Adds what is known of the prefixes that are named.
  void report(std::map<Hash128, std::vector<PlanReport>>& prefixes) const;
  void forget();

  /// What its steps mean: outcomes of other ladders are of no use.
  std::string ladders() const;
  /// What outlives a restart, JSON. `from_json` leaves out records that can't be, and throws
  /// kInvalidSettings for a text that is none of ours or of other ladders.
  std::string to_json() const;
  void from_json(const std::string& text, const std::string& path);
  /// Grows with every request that ends.
  int64_t version() const { return version_; }

 private:
  /// Means over finished requests.
  struct Course {
    double num = 0;
    double forwards = 0, blocks = 0, text_forwards = 0;
  };
  struct Ladder {
    explicit Ladder(size_t num_steps) : outcomes(static_cast<int>(num_steps)) {}
    Outcomes outcomes;
    double uses = 0;
    double uses_since_watch = 0;
    double patience = 1;  // times the uses that are needed; grows while probes find nothing out
  };
  /// What is known of a kind of request with one prefix, or with every prefix.
  struct Record {
    Ladder& of(bool is_shared) { return is_shared ? shared : inside; }
    const Ladder& of(bool is_shared) const { return is_shared ? shared : inside; }
    Course course;
    Ladder inside, shared;
  };
  using Key = std::pair<Hash128, std::string>;
  /// A plan: a step of each ladder.
  struct Steps {
    int of(bool is_shared) const { return is_shared ? shared : inside; }
    Steps with(bool is_shared, int step) const {
      return is_shared ? Steps{inside, step} : Steps{step, shared};
    }
    bool operator==(const Steps&) const = default;
    int inside = 0, shared = -1;
  };

  int start_now(const std::string& kind) const;
  int inside_now(const Key& key) const;
  int shared_now(const Key& key) const;
  Record& touch(const Key& key);
  /// What an event about this prefix counts in.
  std::array<Record*, 2> records_of(const Subject& subject);
  double work(const Subject& subject, const Course& course, const InsidePlan& plan,
              int depth) const;
  double work(const Subject& subject, const Course& course, const Steps& steps) const;
  std::optional<Trial> find_watch(const Subject& subject, bool is_shared) const;
  std::optional<Trial> find_proof(const Subject& subject, bool is_shared) const;
  const Record* find_learned(const Subject& subject, bool is_shared) const;
  Steps in_use(const Subject& subject) const;
  bool is_used_enough(const Ladder& ladder) const;
  Trial survey(const Subject& subject);
  PlanReport describe(const std::string& kind, const Record& record) const;

  const CacheSettings& settings_;
  const int num_layers_;
  const std::vector<int> depths_;
  const std::vector<InsidePlan> plans_;
  const int start_step_;
  LruMap<Key, Record> records_;
  double allowance_ = 0;
  double owed_ = 0;  // to the watch that is due
  Trial claim_;      // the proof that is paid for first
  int64_t version_ = 0;
  size_t num_surveyed_ = 0;
};

}  // namespace bicached
