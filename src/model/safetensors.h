#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/descriptor.h"

namespace bicached {

/// Float8 e4m3 as safetensors calls it.
inline constexpr const char* kFloat8 = "F8_E4M3";

/// A file that is read piece by piece, and not mapped: where another process cuts a mapped file,
/// the one that reads is killed.
class CheckpointFile {
 public:
  /// Throws kInvalidModel.
  explicit CheckpointFile(const std::string& path);

  const std::string& path() const { return path_; }
  size_t num_bytes() const { return num_bytes_; }
  /// Fills `to` with what stands from `begin` on. Throws kInvalidModel where the file ends before.
  void read(size_t begin, std::span<std::byte> to) const;
  std::string read_text(size_t begin, size_t num_bytes) const;

 private:
  std::string path_;
  Descriptor file_;
  size_t num_bytes_ = 0;  // when it was opened
};

/// A tensor of a checkpoint: where its bytes lie. Row-major.
struct StoredTensor {
  std::string dtype;  // "F32", "BF16", "F16", or kFloat8
  std::vector<int64_t> shape;
  const CheckpointFile* file = nullptr;
  size_t begin = 0;  // in the file
  size_t num_bytes = 0;

  /// From byte `first` of the tensor on. Throws as the file.
  void read(size_t first, std::span<std::byte> to) const { file->read(begin + first, to); }
};

/// A tensor's name without the parts that FSDP, DDP, torch.compile and the like put in.
std::string plain_tensor_name(const std::string& name);
/// Rotary frequencies, which some files carry: they follow from rope_theta.
bool is_derived_tensor(const std::string& plain_name);

/// The safetensors files of a model folder, open and validated: `model.safetensors`, or the shards
/// that `model.safetensors.index.json` names.
///
/// Everything is checked before a byte is used: header size, JSON, shapes (overflow), offsets
/// (range, gaps, overlaps), dtypes, duplicate names. Throws kInvalidModel naming file and tensor.
/// Immutable; the files stay open as long as this object lives.
class Checkpoint {
 public:
  static Checkpoint open(const std::string& folder);

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  /// The name under which the tensor of this name is stored. Throws kInvalidModel naming what the
  /// file has in its place.
  const std::string& stored_name(const std::string& name) const;
  /// The forms of a name: some files leave "model." out, or have it once more.
  static std::set<std::string> name_forms(const std::string& name);
  int64_t total_bytes() const { return total_bytes_; }
  /// Hash of all headers (names, dtypes, shapes) and of samples of the data: tells checkpoints
  /// apart without reading them whole.
  std::string fingerprint() const;

 private:
  Checkpoint() = default;
  void add_file(const std::string& path);
  /// Names as families know them: without what training code wraps around a model, and without
  /// tensors that follow from config.json.
  void normalise_names();

  std::vector<std::unique_ptr<CheckpointFile>> files_;
  std::map<std::string, StoredTensor> tensors_;
  int64_t total_bytes_ = 0;
};

}  // namespace bicached
