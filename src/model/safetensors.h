#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// Float8 e4m3 as safetensors calls it.
inline constexpr const char* kFloat8 = "F8_E4M3";

/// A tensor of a checkpoint: where its bytes lie in a mapped file. Row-major.
struct StoredTensor {
  std::string dtype;  // "F32", "BF16", "F16", or kFloat8
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

/// The safetensors files of a model folder, mapped and validated: `model.safetensors`, or the
/// shards that `model.safetensors.index.json` names.
///
/// Everything is checked before a byte is used: header size, JSON, shapes (overflow), offsets
/// (range, gaps, overlaps), dtypes, duplicate names. Throws kInvalidModel naming file and tensor.
/// Immutable; the mapping lives as long as this object.
class Checkpoint {
 public:
  static Checkpoint open(const std::string& folder);
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) = delete;

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  int64_t total_bytes() const { return total_bytes_; }
  /// Hash of all headers (names, dtypes, shapes) and of samples of the data: tells checkpoints
  /// apart without reading them whole.
  std::string fingerprint() const;

 private:
  class MappedFile;
  Checkpoint();
  void add_file(const std::string& path);

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, StoredTensor> tensors_;
  int64_t total_bytes_ = 0;
};

}  // namespace bicached
