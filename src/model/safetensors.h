#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
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

/// A tensor's name without the parts that FSDP, DDP, torch.compile and the like put in.
std::string plain_tensor_name(const std::string& name);
/// Rotary frequencies, which some files carry: they follow from rope_theta.
bool is_derived_tensor(const std::string& plain_name);

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
  class MappedFile;
  Checkpoint();
  void add_file(const std::string& path);
  /// Names as families know them: without what training code wraps around a model, and without
  /// tensors that follow from config.json.
  void normalise_names();

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, StoredTensor> tensors_;
  int64_t total_bytes_ = 0;
};

}  // namespace bicached
