#pragma once

#include <span>
#include <string>

#include "bicached/denoiser.h"
#include "bicached/error.h"

namespace bicached {

/// Something that takes part in a packed forward: a request's canvas with its probe, or a prefix
/// entry being made. Engine thread only.
class ForwardPart {
 public:
  virtual ~ForwardPart() = default;
  virtual int num_rows() const = 0;
  /// May be called again when the forward failed.
  virtual void append_to(Forward& forward) const = 0;
  /// How many logit rows `append_to` adds.
  virtual int num_logit_rows() const = 0;
  /// The results of those rows, in order.
  virtual void commit(std::span<const RowResult> results) = 0;
  /// Gives up what the part can do without; false: there is nothing.
  virtual bool shed() { return false; }
  /// The forward failed with this part alone in it.
  virtual void fail(ErrorCode code, const std::string& why) = 0;
};

}  // namespace bicached
