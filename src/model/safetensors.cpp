#include "model/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/hash.h"
#include "base/json_file.h"
#include "base/text_list.h"
#include "bicached/error.h"

namespace bicached {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

using nlohmann::json;
namespace fs = std::filesystem;

// LLaDA-8B's header has 40 kB; parsed JSON takes a multiple of its text.
constexpr uint64_t kMaxHeaderBytes = 16 << 20;
constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxShards = 4096;  // each is an open file

[[noreturn]] void refuse(const std::string& file, const std::string& why) {
  throw Error(ErrorCode::kInvalidModel, file + ": " + why);
}

int64_t bytes_per_element(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "BF16" || dtype == "F16") return 2;
  if (dtype == kFloat8) return 1;
  return 0;
}

/// It must be an object, without duplicate keys and no deeper than a header ever is.
json parse_header(const std::string& file, std::string_view text) {
  json header = parse_json_text(text, file, ErrorCode::kInvalidModel, {text.size(), 8});
  if (!header.is_object()) refuse(file, "the header must be a JSON object");
  return header;
}

/// One line of the header, checked against the data's size.
StoredTensor parse_tensor(const CheckpointFile& in, const std::string& name, const json& about,
                          size_t data_begin) {
  const std::string& file = in.path();
  const size_t data_bytes = in.num_bytes() - data_begin;
  const std::string where = "tensor '" + name + "': ";
  if (!about.is_object() || !about.contains("dtype") || !about.contains("shape") ||
      !about.contains("data_offsets") || !about["dtype"].is_string() ||
      !about["shape"].is_array() || !about["data_offsets"].is_array() ||
      about["data_offsets"].size() != 2) {
    refuse(file, where + "needs dtype, shape and two data_offsets");
  }
  StoredTensor tensor;
  tensor.dtype = about["dtype"];
  const bool is_derived = is_derived_tensor(plain_tensor_name(name));  // never read, of any type
  const int64_t element = bytes_per_element(tensor.dtype);
  if (element == 0 && !is_derived) {
    refuse(file,
           where + "dtype " + tensor.dtype + " is not supported; F32, BF16, F16 and F8_E4M3 are");
  }
  if (about["shape"].size() > kMaxDimensions) refuse(file, where + "more than 8 dimensions");
  int64_t bytes = element;
  for (const json& size : about["shape"]) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > (1ull << 40)) {
      refuse(file, where + "shape " + about["shape"].dump() + " has a size out of [0, 2^40]");
    }
    const auto n = size.get<int64_t>();
    if (__builtin_mul_overflow(bytes, n, &bytes)) refuse(file, where + "shape overflows");
    tensor.shape.push_back(n);
  }
  const json &first = about["data_offsets"][0], &last = about["data_offsets"][1];
  if (!first.is_number_unsigned() || !last.is_number_unsigned() ||
      last.get<uint64_t>() > data_bytes || first.get<uint64_t>() > last.get<uint64_t>()) {
    refuse(file, where + "data_offsets " + about["data_offsets"].dump() + " lie outside the " +
                     std::to_string(data_bytes) + " bytes of data: the file may be cut short");
  }
  const auto begin = first.get<size_t>(), end = last.get<size_t>();
  if (static_cast<int64_t>(end - begin) != bytes && !is_derived) {
    refuse(file, where + "has " + std::to_string(end - begin) + " bytes; dtype and shape need " +
                     std::to_string(bytes));
  }
  tensor.file = &in;
  tensor.begin = data_begin + begin;
  tensor.num_bytes = end - begin;
  return tensor;
}

}  // namespace

CheckpointFile::CheckpointFile(const std::string& path)
    : path_(path), file_(open_regular_file(path, ErrorCode::kInvalidModel)) {
  struct stat about{};
  if (::fstat(file_.get(), &about) != 0) {
    refuse(path, std::string("can't be read: ") + std::strerror(errno));
  }
  num_bytes_ = static_cast<size_t>(about.st_size);
  if (num_bytes_ == 0) refuse(path, "the file is empty");
}

void CheckpointFile::read(size_t begin, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t count = ::pread(file_.get(), to.data(), to.size(), static_cast<off_t>(begin));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) refuse(path_, std::string("can't be read: ") + std::strerror(errno));
    if (count == 0) {
      refuse(path_, "ends at byte " + std::to_string(begin) + " of " + std::to_string(num_bytes_) +
                        ": it was cut while it was read");
    }
    begin += static_cast<size_t>(count);
    to = to.subspan(static_cast<size_t>(count));
  }
}

std::string CheckpointFile::read_text(size_t begin, size_t num_bytes) const {
  std::string text(num_bytes, '\0');
  read(begin, std::as_writable_bytes(std::span(text)));
  return text;
}

void Checkpoint::add_file(const std::string& path) {
  files_.push_back(std::make_unique<CheckpointFile>(path));
  const CheckpointFile& file = *files_.back();
  constexpr size_t kTelling = 64;  // more than what any foreign content is known by
  const std::string first = file.read_text(0, std::min(file.num_bytes(), kTelling));
  if (const std::string why = foreign_content(first); !why.empty()) refuse(path, why);
  if (first.starts_with("PK\x03\x04") || first.starts_with("GGUF")) {
    refuse(path, std::string("is a ") + (first[0] == 'P' ? "PyTorch (zip)" : "GGUF") +
                     " file; safetensors is what is read here");
  }
  uint64_t header_bytes = 0;
  if (first.size() < sizeof header_bytes) refuse(path, "shorter than the 8 bytes of a header size");
  std::memcpy(&header_bytes, first.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.num_bytes() - sizeof header_bytes) {
    refuse(path, "header size " + std::to_string(header_bytes) + " is over the file's " +
                     std::to_string(file.num_bytes()) + " bytes or the limit of 16 MiB");
  }
  const json header = parse_header(path, file.read_text(sizeof header_bytes, header_bytes));
  const size_t data_begin = sizeof header_bytes + header_bytes;

  std::vector<std::pair<size_t, size_t>> pieces;  // offsets, to find overlaps and gaps
  for (const auto& [name, about] : header.items()) {
    if (name == "__metadata__") continue;
    StoredTensor tensor = parse_tensor(file, name, about, data_begin);
    const size_t begin = tensor.begin - data_begin;
    pieces.emplace_back(begin, begin + tensor.num_bytes);
    total_bytes_ += static_cast<int64_t>(tensor.num_bytes);
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      refuse(path, "tensor '" + name + "' is in another file as well");
    }
  }
  std::sort(pieces.begin(), pieces.end());
  size_t end = 0;
  for (const auto& [begin, piece_end] : pieces) {
    if (begin != end) {
      refuse(path,
             "tensors overlap or leave a gap at byte " + std::to_string(std::min(begin, end)));
    }
    end = piece_end;
  }
  if (const size_t data_bytes = file.num_bytes() - data_begin; end != data_bytes) {
    refuse(path, std::to_string(data_bytes - end) + " bytes of data belong to no tensor");
  }
}

Checkpoint Checkpoint::open(const std::string& folder) {
  Checkpoint checkpoint;
  const fs::path single = fs::path(folder) / "model.safetensors";
  const fs::path index = fs::path(folder) / "model.safetensors.index.json";
  std::error_code error;
  if (fs::exists(single, error)) {
    checkpoint.add_file(single.string());
    checkpoint.normalise_names();
    return checkpoint;
  }
  if (!fs::exists(index, error)) {
    refuse(folder, "holds neither model.safetensors nor model.safetensors.index.json");
  }
  const std::string text =
      read_text_file(index.string(), kMaxHeaderBytes, ErrorCode::kInvalidModel);
  const json parsed = parse_header(index.string(), text);
  if (!parsed.contains("weight_map") || !parsed["weight_map"].is_object()) {
    refuse(index.string(), "needs an object weight_map");
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : parsed["weight_map"].items()) {
    // A shard is a file of this folder: a path could point anywhere on the machine.
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos) {
      refuse(index.string(), "weight_map['" + name + "'] must be a file name of this folder");
    }
    shards.insert(file);
    if (shards.size() > kMaxShards) {
      refuse(index.string(), "names more than " + std::to_string(kMaxShards) + " files");
    }
  }
  for (const std::string& shard : shards) checkpoint.add_file((fs::path(folder) / shard).string());
  for (const auto& [name, shard] : parsed["weight_map"].items()) {
    if (!checkpoint.tensors_.contains(name)) {
      refuse(index.string(), "names tensor '" + name + "', which its shard does not hold");
    }
  }
  checkpoint.normalise_names();
  return checkpoint;
}

void Checkpoint::normalise_names() {
  std::map<std::string, StoredTensor> named;
  for (auto& [name, tensor] : tensors_) {
    const std::string plain = plain_tensor_name(name);
    if (is_derived_tensor(plain)) {
      total_bytes_ -= static_cast<int64_t>(tensor.num_bytes);
      continue;
    }
    if (!named.emplace(plain, std::move(tensor)).second) {
      throw Error(ErrorCode::kInvalidModel,
                  "the checkpoint has two tensors '" + plain + "', one of them as '" + name + "'");
    }
  }
  tensors_ = std::move(named);
}

std::set<std::string> Checkpoint::name_forms(const std::string& name) {
  constexpr std::string_view kTop = "model.";
  const std::string bare = name.starts_with(kTop) ? name.substr(kTop.size()) : name;
  return {name, bare, std::string(kTop) + name};
}

const std::string& Checkpoint::stored_name(const std::string& name) const {
  if (const auto it = tensors_.find(name); it != tensors_.end()) return it->first;
  for (const std::string& form : name_forms(name)) {
    if (const auto it = tensors_.find(form); it != tensors_.end()) return it->first;
  }
  // Of the names that end alike the shortest, else any.
  const size_t last = name.rfind('.');
  const size_t dot = last == 0 || last == std::string::npos ? last : name.rfind('.', last - 1);
  const std::string ending = dot == std::string::npos ? name : name.substr(dot);
  std::string hint;
  for (const auto& [other, tensor] : tensors_) {
    if (other.ends_with(ending) && (hint.empty() || other.size() < hint.size())) hint = other;
  }
  if (hint.empty() && !tensors_.empty()) hint = tensors_.begin()->first;
  throw Error(ErrorCode::kInvalidModel, "the checkpoint has no tensor '" + name + "'" +
                                            (hint.empty() ? "" : "; it has '" + hint + "'"));
}

std::string plain_tensor_name(const std::string& name) {
  // Wrappers of training code, also within a name: "module.", "model._orig_mod.layers...".
  static const std::set<std::string, std::less<>> kWrappers{
      "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
      "_forward_module"};
  std::string plain;
  for (const std::string_view part : split_at(name, '.')) {
    if (!kWrappers.contains(part)) plain.append(plain.empty() ? "" : ".").append(part);
  }
  return plain;
}

bool is_derived_tensor(const std::string& plain_name) {
  static const std::set<std::string, std::less<>> kNames{"inv_freq", "original_inv_freq",
                                                         "cos_cached", "sin_cached"};
  const size_t dot = plain_name.rfind('.');
  return kNames.contains(plain_name.substr(dot == std::string::npos ? 0 : dot + 1));
}

std::string Checkpoint::fingerprint() const {
  Hasher hasher;
  for (const auto& [name, tensor] : tensors_) {
    hasher.add(name);
    hasher.add(tensor.dtype);
    for (const int64_t n : tensor.shape) hasher.add(std::to_string(n));
    constexpr size_t kSample = 4096;
    const size_t sample = std::min(kSample, tensor.num_bytes);
    hasher.add(tensor.file->read_text(tensor.begin, sample));
    if (tensor.num_bytes > kSample) {
      hasher.add(tensor.file->read_text(tensor.begin + tensor.num_bytes - sample, sample));
    }
  }
  return hasher.digest().hex();
}

}  // namespace bicached
