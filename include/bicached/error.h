#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace bicached {

/// What kind of failure an `Error` is. The HTTP layer turns each into one status and one `code`
/// (see the table in src/http/errors.cpp); the command line prints the message and exits with 2.
enum class ErrorCode {
  kInvalidRequest,         // a field's type or range, bad JSON: 400
  kUnsupportedParameter,   // a field of the API that this server refuses: 400
  kContextLengthExceeded,  // prompt + generation over the model's length: 400
  kInvalidApiKey,          // 401
  kForbidden,              // 403: a key that may not do this
  kModelNotFound,          // 404
  kNotFound,               // 404
  kMethodNotAllowed,       // 405
  kRequestTooLarge,        // 413
  kQueueFull,              // 429, Retry-After
  kNotReady,               // 503, Retry-After
  kDraining,               // 503, Retry-After
  kDeadlineExceeded,       // 504
  kDeviceFailed,           // 503: the card can't be used any more, and the process ends
  kOutOfMemory,            // 500 for a request; the engine first evicts and retries
  kInvalidSettings,        // start-up: configuration file, environment or flag
  kInvalidModel,           // start-up: a file of the model folder can't be used
  kInternal,               // 500: a defect of ours
};

/// The one exception type of this program. `message` says what was wrong, where, and what would be
/// right, in words a client or an operator can act on. `param` names the request field or setting,
/// empty when there is none.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::string param = "")
      : std::runtime_error(message), code_(code), param_(std::move(param)) {}

  ErrorCode code() const { return code_; }
  const std::string& param() const { return param_; }

 private:
  ErrorCode code_;
  std::string param_;
};

/// What `work` throws is kInvalidSettings, with `name`, a setting or flag, before its message.
template <class Work>
auto name_errors(const std::string& name, Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    throw Error(ErrorCode::kInvalidSettings, name + ": " + error.what(), name);
  }
}

}  // namespace bicached
