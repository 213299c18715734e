#pragma once

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bicached/field_limit.h"
#include "bicached/request.h"

namespace bicached {

/// A position of the open blocks, with what the model says of it.
struct Candidate {
  int position = 0;  // in the canvas; candidates come in ascending order
  TokenId token = 0;
  float probability = 0.0f;                                   // its confidence, see RowResult
  float margin = 0.0f;                                        // first minus second probability
  float entropy = 0.0f;                                       // nats
  float divergence = std::numeric_limits<float>::infinity();  // of the last two steps, nats
  TokenId current = -1;  // what the position is decided as; -1: it is masked
};

/// Where the open blocks stand: one, the active block, unless the algorithm opens more.
struct BlockProgress {
  int step = 0;       // steps done in this block
  int num_steps = 1;  // steps this block may take (quota algorithms)
  int num_masked_at_start = 0;
  int num_masked = 0;                 // now: as many as there are candidates
  int num_masked_in_first_block = 0;  // of these, the first ones
  Schedule schedule = Schedule::kEven;
  /// For each candidate, uniform in [0, 1) and new in each step: a function of seed, block, step
  /// and position.
  std::span<const double> noise = {};
};

/// Which masked positions to decide now: the decoding algorithm.
///
/// Pure: no tensors, no clock, no state; any thread. One implementation per file in
/// src/decode/unmask/, one line in `unmasker_table()`. A function of its arguments; ties go to the
/// lowest position.
class Unmasker {
 public:
  virtual ~Unmasker() = default;

  /// Indices into `candidates` (not empty), ascending, of the positions to decide. The decoder
  /// decides the most probable candidate when a step that has a quota chooses none, so a request
  /// always ends.
  virtual std::vector<int> choose(std::span<const Candidate> candidates,
                                  const BlockProgress& progress) const = 0;

  /// Indices into `decided`, ascending, of the positions of the block that are decided and take
  /// another token now. Asked only with max_revisions() > 0.
  virtual std::vector<int> revise(std::span<const Candidate>) const { return {}; }
  /// How many forwards a block without masks may take for that, until one revises nothing. 0: what
  /// is decided stays.
  virtual int max_revisions() const { return 0; }

  /// The share of the last open block that is decided before the next one opens beside it, one a
  /// forward. Above 1: one block after the other. What follows an end token is then decided as end
  /// tokens, if the request ends at one.
  virtual double opens_next_at() const { return std::numeric_limits<double>::infinity(); }

  /// How many positions this step decides at least. 0: the step decides nothing and needs no
  /// forward.
  virtual int min_choices(const BlockProgress&) const { return 1; }
  /// Whether a block always takes `num_steps` steps (quota) or ends when nothing is masked.
  virtual bool counts_steps() const { return false; }
  /// Whether a step may have to decide more positions than one, sure or not.
  virtual bool has_quota() const { return counts_steps(); }
  /// Whether it looks at Candidate::divergence, which costs memory.
  virtual bool wants_divergence() const { return false; }
};

/// A number that a decoding algorithm takes: a request field, a setting and a key of a model's
/// generation_config.json by this name. Its range begins at 0 or above: as a setting -1 leaves it
/// open. Algorithms that share a name share the parameter.
struct UnmaskerParam {
  FieldLimit limit;
  double default_value;
  const char* about;  // a sentence
};

/// A decoding algorithm the server offers.
struct UnmaskerInfo {
  const char* name;
  const char* about;  // a sentence with the source of the method
  std::vector<UnmaskerParam> params;
  std::unique_ptr<Unmasker> (*make)(const DecodeParams& params);
};

/// All algorithms, in the order they are shown to users.
std::span<const UnmaskerInfo> unmasker_table();
std::vector<std::string> unmasker_names();
/// The parameters of all algorithms, each once.
std::span<const UnmaskerParam> unmasker_params();
/// How users read of a parameter: whose it is, what it does, its default.
std::string describe(const UnmaskerParam& param);
/// Throws kInvalidRequest (param "algorithm") that lists the names when there is no such algorithm.
std::unique_ptr<Unmasker> make_unmasker(const DecodeParams& params);

}  // namespace bicached
