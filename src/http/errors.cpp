#include "http/errors.h"

#include <new>
#include <nlohmann/json.hpp>

namespace bicached {
namespace {

constexpr const char* kInvalid = "invalid_request_error";
constexpr size_t kMaxMessageBytes = 1000;  // a parser's message may quote the whole body
constexpr const char* kServer = "server_error";

nlohmann::ordered_json make_body(const std::string& message, const char* type,
                                 const std::string& param, const char* code) {
  nlohmann::ordered_json error;
  error["message"] =
      message.size() <= kMaxMessageBytes ? message : message.substr(0, kMaxMessageBytes) + "...";
  error["type"] = type;
  error["param"] = param.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(param);
  error["code"] = code ? nlohmann::ordered_json(code) : nlohmann::ordered_json();
  nlohmann::ordered_json body;
  body["error"] = std::move(error);
  return body;
}

}  // namespace

HttpError describe_error(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidRequest: return {400, kInvalid, nullptr, false};
    case ErrorCode::kUnsupportedParameter: return {400, kInvalid, "unsupported_parameter", false};
    case ErrorCode::kContextLengthExceeded:
      return {400, kInvalid, "context_length_exceeded", false};
    case ErrorCode::kInvalidApiKey: return {401, "authentication_error", "invalid_api_key", false};
    case ErrorCode::kForbidden: return {403, "permission_error", "permission_denied", false};
    case ErrorCode::kModelNotFound: return {404, kInvalid, "model_not_found", false};
    case ErrorCode::kNotFound: return {404, kInvalid, "not_found", false};
    case ErrorCode::kMethodNotAllowed: return {405, kInvalid, "method_not_allowed", false};
    case ErrorCode::kRequestTooLarge: return {413, kInvalid, "request_too_large", false};
    case ErrorCode::kQueueFull: return {429, "rate_limit_error", "queue_full", true};
    case ErrorCode::kNotReady: return {503, kServer, "not_ready", true};
    case ErrorCode::kDraining: return {503, kServer, "draining", true};
    case ErrorCode::kDeviceFailed: return {503, kServer, "device_failed", true};
    case ErrorCode::kDeadlineExceeded: return {504, kServer, "deadline_exceeded", false};
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kInvalidSettings:
    case ErrorCode::kInvalidModel:
    case ErrorCode::kInternal: break;
  }
  return {500, kServer, "internal_error", false};
}

nlohmann::ordered_json error_json(const Error& error, const std::string& request_id) {
  const HttpError about = describe_error(error.code());
  const std::string message =
      about.status == 500
          ? "the server failed at this request; its log has the reason under id " + request_id
          : error.what();
  return make_body(message, about.type, error.param(), about.code);
}

nlohmann::ordered_json error_json_of_status(int status) {
  if (status >= 500) return make_body("the server failed", kServer, "", "internal_error");
  return make_body("the request is not well-formed HTTP, or its body did not arrive", kInvalid, "",
                   nullptr);
}

Error to_error(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kOutOfMemory, "out of memory");
  } catch (const std::exception& e) {
    return Error(ErrorCode::kInternal, e.what());
  } catch (...) {
    return Error(ErrorCode::kInternal, "an exception of unknown type");
  }
}

}  // namespace bicached
