#pragma once

#include <exception>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "bicached/error.h"

namespace bicached {

/// How a failure looks over HTTP.
struct HttpError {
  int status;
  const char* type;
  const char* code;  // null: none
  bool retry_after;
};

HttpError describe_error(ErrorCode code);

/// OpenAI's error object, `{"error": {...}}`. A defect's own words stay in the log: the client
/// gets the request id to ask with.
nlohmann::ordered_json error_json(const Error& error, const std::string& request_id);

/// For statuses that the HTTP library decides on.
nlohmann::ordered_json error_json_of_status(int status);

/// Whatever was thrown, as an Error: unknown exceptions are kInternal.
Error to_error(std::exception_ptr thrown);

}  // namespace bicached
