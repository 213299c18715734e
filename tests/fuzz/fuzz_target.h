#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "base/log.h"
#include "bicached/error.h"

namespace bicached {

/// A defect: the fuzzer keeps the input.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

/// What reads foreign bytes may refuse them with an `Error`; whatever else it throws is a defect.
template <class Work>
void refuse_or(Work&& work) {
  static const bool is_quiet = (log_setup("error", "text", "/dev/null"), true);
  require(is_quiet, "the log is set up");
  try {
    work();
  } catch (const Error&) {
  }
}

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A folder of this process, in memory where there is such a file system.
class Folder {
 public:
  Folder() {
    const char* shared_memory = "/dev/shm";
    std::string path = std::filesystem::is_directory(shared_memory) ? shared_memory : "/tmp";
    path += "/bicached-fuzz-XXXXXX";
    require(::mkdtemp(path.data()) != nullptr, "a folder can be made");
    path_ = path;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  void write(const std::string& name, std::string_view bytes) const {
    std::ofstream(path_ + "/" + name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::string path_;
};

/// Takes numbers off the input.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool is_empty() const { return size_ == 0; }
  int byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace bicached
