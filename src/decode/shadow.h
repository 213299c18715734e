#pragma once

#include <span>

#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "decode/canvas_decoder.h"
#include "decode/leases.h"

namespace bicached {

/// A probe: a second canvas of a request, under the plan that is tried. It runs in the same
/// forwards as the request, whose own plan is the careful one, and takes over the request's
/// decisions instead of its own; so it sees at every forward what the plan would have decided
/// there. The request's answer is not touched. Engine thread only.
///
/// The plan **agrees** as long as no token that either of both decides in a forward is another's at
/// that position. Decisions of probability 0.5 or less don't count: another token is about as good.
class Shadow {
 public:
  /// `slab` holds as many tokens as the request's canvas, with what the plan takes from `states`
  /// loaded into it.
  Shadow(const GenerateRequest& request, const ModelInfo& model, Reuse plan, Lease slab,
         PrefixStates states);
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  /// Until the plan has differed, since what it would go on to decide says nothing more, or a whole
  /// block had no decision that counts.
  bool is_running() const { return static_cast<bool>(slab_); }
  int num_rows() const { return is_running() ? decoder_.next().num_rows : 0; }
  int num_logit_rows() const { return is_running() ? decoder_.num_logit_rows() : 0; }
  void append_to(Forward& forward) const {
    if (is_running()) decoder_.append_to(forward, slab_.id(), states_);
  }
  /// The results of its rows, those of the request's rows, and what the request decided by them.
  void follow(std::span<const RowResult> results, std::span<const RowResult> of_request,
              const std::vector<Commit>& commits);

  bool agrees() const { return agrees_; }
  /// Decisions compared so far. While there are none nothing is known.
  int num_checks() const { return num_checks_; }
  const GenerationStats& stats() const { return decoder_.stats(); }
  const Reuse& plan() const { return decoder_.reuse(); }

 private:
  void compare(std::span<const RowResult> results, std::span<const RowResult> of_request,
               const std::vector<Commit>& commits);

  GenerateRequest request_;  // a copy: without noise, log-probabilities and deadline
  CanvasDecoder decoder_;
  Lease slab_;
  const PrefixStates states_;
  const bool request_draws_;  // its tokens are drawn, not the most probable ones
  bool agrees_ = true;
  int num_checks_ = 0;
};

}  // namespace bicached
