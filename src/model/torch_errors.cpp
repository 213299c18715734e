#include "model/torch_errors.h"

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "bicached/error.h"

namespace bicached {

void rethrow_torch_error(const char* what) {
  const std::string where = std::string(what) + ": ";
  try {
    throw;
  } catch (const c10::OutOfMemoryError& e) {
    throw Error(ErrorCode::kOutOfMemory, where + e.what_without_backtrace());
  } catch (const c10::Error& e) {
    // The CPU allocator reports with torch's general type.
    const std::string message = e.what_without_backtrace();
    const bool memory = message.find("allocate memory") != std::string::npos;
    throw Error(memory ? ErrorCode::kOutOfMemory : ErrorCode::kInternal, where + message);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, where + "no memory left on this machine");
  }
}

}  // namespace bicached
