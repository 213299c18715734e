#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "bicached/unmasker.h"
#include "decode/canvas.h"
#include "decode/planner.h"
#include "decode/request_rules.h"

namespace bicached {

/// What the next forward of a canvas is, as the scheduler and the golden traces see it.
struct PlannedForward {
  std::vector<RowGroup> groups;  // without slab, tokens and entries
  std::vector<RowGroup> guide;   // those of the canvas without the prompt (cfg_scale)
  bool decides = true;           // false: its logits are thrown away (FirstForward::kDiscarded)
  bool refresh = false;          // the prefix takes part
  bool in_block = false;         // runs only what the intra-request cache leaves: cheap
  int num_rows = 0;
  int64_t row_layers = 0;  // sum of rows * layers
  int block = 0;
};

/// Slabs of a canvas, as long as it is.
struct CanvasSlabs {
  CanvasSlabs(SlabId canvas_in, SlabId guide_in = kNoId) : canvas(canvas_in), guide(guide_in) {}
  SlabId canvas;
  SlabId guide;  // with cfg_scale
};

/// Entries that a canvas works with.
struct PrefixStates {
  EntryId shared = kNoId;  // enters the first forward from it at depth > 0
  /// Its own: takes hidden states in the first forward, and refreshes enter from it.
  EntryId own = kNoId;
};

/// Whether a request needs a second canvas, without its prompt.
inline bool is_guided(const GenerateRequest& request) { return request.decode.cfg_scale != 0; }

/// Decodes one request: canvas, blocks, refreshes, commits, end of text. Torch-free and without a
/// clock: the same results give the same canvas. Engine thread only.
///
/// Use: while (!finished()) { append_to(forward); run it; commit(results); }
class CanvasDecoder {
 public:
  CanvasDecoder(const GenerateRequest& request, const ModelInfo& model, Reuse reuse);

  bool finished() const { return finish_ != FinishReason::kNone; }
  FinishReason finish_reason() const { return finish_; }
  const PlannedForward& next() const { return next_; }

  /// Adds the next forward's row groups and logit rows, on this slab.
  void append_to(Forward& forward, CanvasSlabs slabs, const PrefixStates& prefix) const;
  /// Takes the results of the rows that `append_to` added, in order, and moves on.
  void commit(std::span<const RowResult> results) { follow(decide(results)); }
  /// What `commit` would decide by these results.
  std::vector<Commit> decide(std::span<const RowResult> results) const;
  /// Moves on with these decisions, whoever made them.
  void follow(std::vector<Commit> commits);
  /// How many logit rows `append_to` adds.
  int num_logit_rows() const;
  /// The positions they serve, ascending: masked ones of the open blocks, and those that are
  /// decided if the algorithm revises.
  const std::vector<int>& open_positions() const { return open_; }

  /// Generation tokens that became final on the left since the last call: all before them is
  /// decided. Never an end token or what follows it.
  std::vector<DecidedToken> take_final_tokens();
  const std::vector<Commit>& last_commits() const { return last_commits_; }
  const Canvas& canvas() const { return canvas_; }
  /// The open blocks [begin, end) of the next forward; one if the algorithm opens no more.
  int block_begin() const { return block_begin_; }
  int block_end() const { return block_end_; }
  const GenerationStats& stats() const { return stats_; }
  const Reuse& reuse() const { return reuse_; }

 private:
  void prepare_next();
  void update_progress();
  PlanState plan_state() const;
  void append_guide(Forward& forward, SlabId slab) const;
  LogitRow logit_row(int position) const;
  bool decides_first_position() const;
  std::vector<int> choose(std::span<const Candidate> masked) const;
  void enter_block(int block);
  void enter_blocks();
  int block_limit(int block) const;
  bool block_is_done() const;
  bool grow();
  bool runs_full_suffix() const;
  int block_start(int position) const;
  bool refresh_is_due() const;
  void record(const Commit& commit);
  void update_finish();
  void fill_behind_end();

  const GenerateRequest& request_;
  const ModelInfo& model_;
  const Reuse reuse_;
  const std::unique_ptr<Unmasker> unmasker_;
  Canvas canvas_;
  RequestRules rules_;
  /// No forward of the canvas, as long as it is now, has run yet.
  bool is_new_ = true;

  // The open blocks: the first one that is not done, and those that are decided beside it.
  int first_block_begin_ = 0;
  int block_ = 0;
  int last_block_ = 0;
  int block_begin_ = 0;
  int block_end_ = 0;
  BlockProgress progress_;
  std::vector<int> open_;
  std::vector<double> noise_;  // of the step, by masked position
  int revisions_left_ = 0;     // forwards that may still revise the block once nothing is masked
  bool at_block_start_ = true;
  int settled_end_ = 0;  // of PlanState

  // Refreshes of the prefix, over the whole request.
  int denoise_step_ = 0;
  int last_refresh_step_ = -1;
  int forwards_since_refresh_ = 0;
  int text_commits_ = 0;
  int text_commits_at_refresh_ = 0;

  PlannedForward next_;
  std::vector<Commit> last_commits_;
  std::vector<DecidedToken> decided_;  // by generation position
  int final_end_ = 0;                  // generation positions [0, final_end_) are final
  int last_given_ = -1;                // generation position of the last token between gaps
  bool gap_ended_ = false;             // by an end token: the rest of it is no text
  bool text_ended_ = false;
  std::vector<DecidedToken> final_;  // text that was not taken yet
  FinishReason finish_ = FinishReason::kNone;
  GenerationStats stats_;
};

}  // namespace bicached
