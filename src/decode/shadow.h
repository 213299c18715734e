#pragma once

#include <span>
#include <utility>
#include <vector>

#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "decode/canvas_decoder.h"
#include "decode/leases.h"

namespace bicached {

/// A probe: a second canvas of a request, under the plan that is tried. It runs in the same
/// forwards as the request, which runs the plan that it is compared with. The request's answer is
/// not touched. Engine thread only.
///
/// The plan **agrees** as long as no position gets another token.
class Shadow {
 public:
  enum class Course {
    /// It takes over the request's decisions, and shows at each forward what it would have decided
    /// there. Enough where forwards are computed anew and only sure tokens are decided: what is
    /// wrong shows at once. Tokens of a probability up to 0.5 don't count: another one is about as
    /// good.
    kOfRequest,
    /// It decides by itself. A plan that keeps states from forward to forward, or an algorithm that
    /// has to decide what it is unsure of, may choose in another order, and only its own course
    /// shows what comes of that.
    kOwn,
  };
  /// `slab` holds as many tokens as the request's canvas, with what the plan takes from `states`
  /// loaded into it. A request that draws its tokens is followed in any case, since chance would
  /// part the two.
  Shadow(const GenerateRequest& request, const ModelInfo& model, Reuse plan, Lease slab,
         PrefixStates states, Course course);
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  /// Until the plan has differed, since what it would go on to decide says nothing more, or a whole
  /// block had no decision that counts.
  bool is_running() const { return static_cast<bool>(slab_); }
  int num_rows() const { return is_running() ? decoder_.next().num_rows : 0; }
  bool in_block() const { return !is_running() || decoder_.next().in_block; }
  int num_logit_rows() const { return is_running() ? decoder_.num_logit_rows() : 0; }
  void append_to(Forward& forward) const {
    if (is_running()) decoder_.append_to(forward, slab_.id(), states_);
  }
  /// The results of its rows, those of the request's rows, and what the request decided by them.
  void advance(std::span<const RowResult> results, std::span<const RowResult> of_request,
               const std::vector<Commit>& commits);

  /// The request has ended: what the plan has left open counts as it stands.
  void conclude();
  bool agrees() const { return agrees_; }
  /// Decisions compared so far. While there are none nothing is known, and neither is of a plan
  /// that had not come to all that the request has decided.
  int num_checks() const { return lags_ ? 0 : num_checks_; }
  const GenerationStats& stats() const { return decoder_.stats(); }
  const Reuse& plan() const { return decoder_.reuse(); }

 private:
  struct Choice {
    TokenId token = kNoToken;
    float probability = 0;
  };

  void compare_rows(const std::vector<Commit>& commits, std::span<const RowResult> others,
                    bool counts_anyway);
  void compare_decided(const std::vector<Commit>& commits);
  void compare_sure(const Choice& one, const Choice& other);
  Choice& at(std::vector<Choice>& choices, int position) {
    return choices[static_cast<size_t>(position)];
  }

  GenerateRequest request_;  // a copy: without noise, log-probabilities and deadline
  CanvasDecoder decoder_;
  Lease slab_;
  const PrefixStates states_;
  const bool request_draws_;  // its tokens are drawn, not the most probable ones
  const bool follows_;
  std::vector<Choice> of_request_, own_;  // by position
  /// Once they have parted: positions, as they stood in the last forward.
  std::vector<std::pair<int, Choice>> open_;
  bool is_together_ = true;  // both have decided the same until now
  bool agrees_ = true;
  bool lags_ = false;
  int num_checks_ = 0;
};

}  // namespace bicached
