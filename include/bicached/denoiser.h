#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// How the reference implementation of a model family decodes: what a request gets that asks for
/// nothing else.
struct ReferenceDecoder {
  std::string algorithm = "low_confidence";
  int block_length = 32;
  Schedule schedule = Schedule::kEven;
  /// Confidences are those of the distribution that tokens are drawn from, after temperature, top_p
  /// and top_k, which then act at temperature 0 too (Dream). Else those of softmax(logits).
  bool filters_confidence = false;
  AlgorithmParams params;  // where they are not the algorithm's own defaults
};

/// What the engine and the HTTP layer need to know of a loaded model.
struct ModelInfo {
  std::string family;       // a name of the family table
  std::string name;         // for display: the folder's name
  std::string fingerprint;  // hash of config and weights' header and size: part of a prefix's key
  std::string device;       // "cpu", "cuda:0"
  std::string dtype;        // compute type: "float32", "bfloat16"
  int num_layers = 0;
  int hidden_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int vocab_size = 0;   // ids below this may be in a prompt
  int num_logits = 0;   // rows of the output matrix, >= vocab_size
  int num_experts = 0;  // of a mixture, in a layer that has one; 0: the model has none
  int experts_per_token = 0;
  int max_length = 0;  // longest canvas, tokens
  TokenId mask_token = 0;
  std::vector<TokenId> end_tokens;  // any of them ends the text
  TokenId start_token = -1;         // that texts begin with; -1: none is named
  int logits_shift = 0;             // logits of row j - shift serve position j (Dream: 1)
  /// Not 0: a row attends over all positions up to the end of its block of so many, counted from
  /// the canvas's beginning, and a canvas is whole blocks (LLaDA2, SDAR). 0: over all of them.
  int attention_block = 0;
  ReferenceDecoder decoder;
  std::string chat_template;  // Jinja, of the family, for folders without one; may be empty
  /// Forwards of nothing but rows of blocks run faster than what they add to others: their own
  /// attention, CUDA graphs.
  bool blocks_go_alone = false;
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;
  int64_t device_bytes = 0;           // memory of the card; 0: CPU
  int64_t kv_bytes_per_token = 0;     // K and V of all layers
  int64_t forward_bytes_per_row = 0;  // buffers of a forward
  /// What a card gives beside: logits at a time, the context, kernels of libraries, graphs. 0: CPU.
  int64_t runtime_bytes = 0;
};

/// A contiguous piece of the KV pool that one canvas owns: K (with RoPE applied) and V of every
/// layer for T positions.
using SlabId = int64_t;

/// A stored prefix: K and V of the layers below `max_depth` and hidden states at boundaries.
using EntryId = int64_t;
/// Ids are counted up and never used twice; 64 bits don't run out.
inline constexpr int64_t kNoId = -1;

/// Rows of one canvas that take part in a forward, from a layer on: the one idea of the engine.
/// See DESIGN 2 for which technique writes which groups. Example, canvas of T = 9 with a cached
/// prefix P = 4 at depth b = 2 in a model of L = 3 layers, refresh forward:
///
///     {rows [4, 9), enter_layer 0}   layers 0, 1, 2 run 5 rows each
///     {rows [0, 4), enter_layer 2}   layer 2 runs 4 rows more, from the entry's hidden state
///
/// In a layer all groups first write K/V to their slab, then each attends over [0, key_end).
struct RowGroup {
  SlabId slab = kNoId;
  int begin = 0;  // rows [begin, end) of the canvas, unless `rows` is set
  int end = 0;
  std::vector<int> rows;  // an index list instead of the range; ascending
  int enter_layer = 0;    // first layer that runs these rows
  int leave_layer = -1;   // first layer that no longer runs them; -1: they stay to the end
  int key_end = 0;        // attends over canvas positions [0, key_end)
  /// Tokens of the rows in order, masked positions as the mask token. Only for enter_layer == 0.
  std::vector<TokenId> tokens;
  /// enter_layer > 0: the entry whose hidden state at that boundary is taken.
  EntryId enter_from = kNoId;
  /// The entry that receives hidden states of the rows that are its positions, also those before
  /// the layer at which they leave.
  EntryId capture_to = kNoId;

  int num_rows() const { return rows.empty() ? end - begin : static_cast<int>(rows.size()); }
  int row_at(int i) const { return rows.empty() ? begin + i : rows[static_cast<size_t>(i)]; }
};

/// A token on a canvas, as penalties count it.
struct CountedToken {
  TokenId token = 0;
  int num_decided = 0;    // positions that have it by decision; end tokens don't count
  bool is_given = false;  // prompt or suffix have it
};

/// A row whose logits are wanted.
struct LogitRow {
  int group = 0;                             // index into Forward::groups
  int row = 0;                               // canvas position; must be a row of that group
  const SamplingParams* sampling = nullptr;  // not owned
  std::span<const TokenId> never;            // are not chosen: their logit is -infinity; not owned
  std::span<const TokenId> never_here;       // further ones, of this position; not owned
  std::span<const CountedToken> counted;     // with penalties, each token once; not owned
  TokenId current = kNoToken;                // the row's own token, which may be revised
  /// Leave the distribution once the token is chosen: its confidence is 0 if it is one of these,
  /// and otherwise that among the other tokens. Not owned.
  std::span<const TokenId> discounted;
  double uniform = 0.0;  // in [0, 1): the row's randomness, used at temperature > 0
  /// Not 0: the next logit row is the same position of a canvas without the prompt, and with c of
  /// this row and u of that one the logits are u + guidance (c - u). That row's result means
  /// nothing.
  float guidance = 0.0f;
  /// Not kNoId: the row's distribution is kept until the next forward of this slab, for
  /// RowResult::divergence. A float32 row of logits a masked position of the active block.
  SlabId history = kNoId;
};

/// One pass of the model over the rows of any number of canvases.
struct Forward {
  std::vector<RowGroup> groups;
  std::vector<LogitRow> logit_rows;
};

/// What comes back for a LogitRow. The mask token is never chosen, but takes part in the softmax,
/// as in the reference implementations.
struct RowResult {
  TokenId token = 0;         // kNoToken: none may be chosen, and the numbers mean nothing
  float probability = 0.0f;  // softmax(logits)[token], without temperature
  // Of the distribution by which the family compares positions (ReferenceDecoder):
  float confidence = 0.0f;  // the token's probability
  float margin = 0.0f;      // first minus second probability
  float entropy = 0.0f;     // -sum p ln p, nats
  /// The greatest of the last two KL(p now || p a forward ago) of the position, of softmax(logits),
  /// nats; infinite while fewer are known, and without `history`.
  float divergence = std::numeric_limits<float>::infinity();
  std::vector<TokenLogprob> top;  // num_top_logprobs most probable, when asked for
};

/// Shape of a prefix entry. Hidden states are kept only for boundaries a depth policy can ask for.
struct EntrySpec {
  int prefix_len = 0;
  int max_depth = 0;            // K/V kept for layers < max_depth
  std::vector<int> boundaries;  // layers b > 0 at which a group may enter (state before layer b)
};

/// The model as the engine sees it: slabs, forwards, prefix entries. Engine thread only.
/// `TorchDenoiser` is the real one; tests of engine and HTTP use `FakeDenoiser`, without torch.
///
/// Errors: kOutOfMemory when the device has no memory left; kDeviceFailed when it can't be used any
/// more; everything else is a defect (kInternal). A call that throws has changed nothing, except
/// that a forward may have written K/V of its rows. The engine counts on no call to work
/// (src/engine/watched_denoiser.h).
class Denoiser {
 public:
  virtual ~Denoiser() = default;

  virtual const ModelInfo& info() const = 0;
  /// Called once on the engine's thread, before anything else: starts what later calls need.
  virtual void begin_on_thread() {}

  /// Reserves K/V room for a canvas of `num_tokens`. Nothing: does not fit now.
  virtual std::optional<SlabId> open_slab(int num_tokens) = 0;
  virtual void close_slab(SlabId slab) = 0;
  virtual int64_t capacity_tokens() const = 0;
  virtual int64_t free_tokens() const = 0;

  /// Runs all groups in one packed pass; results[i] belongs to forward.logit_rows[i]. `meanwhile`,
  /// if there is one, is called once at most: as soon as a device has its work, else before it.
  virtual std::vector<RowResult> run(const Forward& forward,
                                     const std::function<void()>& meanwhile) = 0;
  std::vector<RowResult> run(const Forward& forward) { return run(forward, {}); }

  /// Prefix entries. `create_entry` allocates; a forward with `capture_to` fills the hidden states;
  /// `fill_entry` copies K/V of layers < max_depth, positions [0, P), out of a slab.
  virtual int64_t entry_bytes(const EntrySpec& spec) const = 0;
  virtual EntryId create_entry(const EntrySpec& spec) = 0;
  virtual void fill_entry(EntryId entry, SlabId from) = 0;
  /// Copies K/V of layers < depth to positions [0, P) of the slab.
  virtual void load_entry(EntryId entry, SlabId to, int depth) = 0;
  virtual void destroy_entry(EntryId entry) = 0;

  /// Nothing has run for a while: gives back memory that the next forward makes anew, where that
  /// costs little. Changes no slab and no entry.
  virtual void rest() {}

  /// Throws kInternal if slabs overlap, leak, or the accounts don't add up.
  virtual void check_integrity() const = 0;
};

}  // namespace bicached
