#include "text/tokenizer_files.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/json_file.h"
#include "bicached/error.h"

namespace bicached {
namespace {

using json = nlohmann::json;

constexpr size_t kMaxFileBytes = 256u << 20;  // the largest released tokenizer.json has 33 MB
constexpr int kMaxDepth = 64;
constexpr int64_t kMaxId = 1 << 24;  // an id above it is a mistake, not a vocabulary
/// Each is compiled, which takes up to a megabyte, and goes over every text. Released tokenizers
/// have up to three.
constexpr size_t kMaxSplits = 16;

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Reads and checks the files of one tokenizer; every refusal names the file and the thing.
class Reader {
 public:
  explicit Reader(std::string folder) : folder_(std::move(folder)) {}

  TokenizerSpec read() {
    if (exists("tokenizer.json")) {
      read_fast(read_object("tokenizer.json"));
    } else if (exists("vocab.json")) {
      read_slow();
    } else {
      file_ = "tokenizer.json";
      refuse("the folder has neither tokenizer.json nor vocab.json + merges.txt");
    }
    return std::move(spec_);
  }

 private:
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  bool exists(const std::string& name) const { return std::filesystem::exists(path(name)); }

  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(ErrorCode::kInvalidModel, path(file_) + ": " + why);
  }

  json read_object(const char* name) {
    file_ = name;
    json object = read_model_json(path(file_));
    if (!object.is_object()) refuse("the JSON is not an object");
    return object;
  }

  static std::string type_of(const json& object) {
    if (!object.is_object()) return "(not an object)";
    const auto it = object.find("type");
    return it != object.end() && it->is_string() ? it->get<std::string>() : "(none)";
  }
  static const json& member(const json& object, const char* name) {
    static const json null;
    const auto it = object.find(name);
    return it == object.end() ? null : *it;
  }
  bool flag(const json& object, const char* name, bool otherwise) const {
    const json& value = member(object, name);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) refuse(std::string(name) + " must be true or false");
    return value.get<bool>();
  }

  // --- tokenizer.json ---

  void read_fast(const json& root) {
    const json& model = member(root, "model");
    if (!model.is_object()) refuse("model is missing");
    read_model(model);
    normalizer(member(root, "normalizer"));
    pre_tokenizer(member(root, "pre_tokenizer"));
    decoder(member(root, "decoder"));
    const json& added = member(root, "added_tokens");
    if (!added.is_null() && !added.is_array()) refuse("added_tokens must be a list");
    for (const json& token : added) add_token(token, integer_id(member(token, "id")), true);
    post_processor(member(root, "post_processor"));
  }

  void read_model(const json& model) {
    // Files from before the type was written: only BPE has merges.
    const bool is_old_bpe = !model.contains("type") && member(model, "merges").is_array();
    if (type_of(model) != "BPE" && !is_old_bpe) {
      refuse("model type " + type_of(model) + " is not supported; byte-level BPE is");
    }
    if (flag(model, "byte_fallback", false)) {
      refuse("byte_fallback (BPE over characters) is not supported; byte-level BPE is");
    }
    const json& dropout = member(model, "dropout");
    if (!dropout.is_null() && dropout != 0.0) {
      refuse("dropout makes encoding random and is not supported; set it to null");
    }
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const json& value = member(model, name);
      if (!value.is_null() && value != "") refuse(std::string(name) + " is not supported");
    }
    spec_.ignore_merges = flag(model, "ignore_merges", false);
    read_vocab(member(model, "vocab"));
    const json& merges = member(model, "merges");
    if (!merges.is_array()) refuse("model.merges must be a list");
    for (const json& merge : merges) read_merge(merge);
  }

  void read_vocab(const json& vocab) {
    if (!vocab.is_object() || vocab.empty()) {
      refuse("model.vocab is missing or not an object of token to id");
    }
    std::unordered_map<TokenId, std::string> seen;
    for (const auto& [text, value] : vocab.items()) {
      const TokenId id = integer_id(value, text);
      if (const auto [it, is_new] = seen.emplace(id, text); !is_new) {
        refuse("vocabulary entries \"" + it->second + "\" and \"" + text + "\" have the same id " +
               std::to_string(id));
      }
      spec_.vocab.emplace_back(text, id);
      ids_.emplace(text, id);
      taken_.emplace(id, text);
    }
    for (int b = 0; b < 256; ++b) {
      const std::string symbol = bytes_to_symbols(std::string(1, static_cast<char>(b)));
      if (!ids_.count(symbol)) {
        refuse("the vocabulary has no entry for byte " + std::to_string(b) + " (symbol \"" +
               symbol + "\"), so some text can't be encoded; all 256 byte symbols are needed");
      }
    }
    next_id_ = static_cast<TokenId>(spec_.vocab.size());
    for (const auto& [text, id] : spec_.vocab) {
      if (id >= 4 * next_id_ + 4096) {
        refuse("id " + std::to_string(id) + " of \"" + text + "\" is far outside a vocabulary of " +
               std::to_string(next_id_) + " entries");
      }
    }
  }

  TokenId integer_id(const json& value, const std::string& text = "an added token") const {
    if (!value.is_number_integer()) refuse("the id of \"" + text + "\" must be an integer");
    if ((value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{kMaxId}) ||
        value.get<int64_t>() < 0 || value.get<int64_t>() > kMaxId) {
      refuse("the id of \"" + text + "\" is " + value.dump() + "; ids are 0 to " +
             std::to_string(kMaxId));
    }
    return value.get<TokenId>();
  }

  void read_merge(const json& merge) {
    if (merge.is_string()) {
      merge_line(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      add_merge(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      refuse("merge " + std::to_string(spec_.merges.size()) + " is not two parts");
    }
  }

  void merge_line(const std::string& line) {
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
      refuse("merge " + std::to_string(spec_.merges.size()) + " (\"" + line +
             "\") must be two parts with one space between");
    }
    add_merge(line.substr(0, space), line.substr(space + 1));
  }

  void add_merge(const std::string& left, const std::string& right) {
    const auto find = [&](const std::string& text) {
      const auto it = ids_.find(text);
      if (it == ids_.end()) {
        refuse("merge " + std::to_string(spec_.merges.size()) + " (\"" + left + "\" + \"" + right +
               "\") names \"" + text + "\", which is not in the vocabulary");
      }
      return it->second;
    };
    spec_.merges.push_back({find(left), find(right), find(left + right)});
  }

  void normalizer(const json& value) {
    if (value.is_null()) return;
    const std::string type = type_of(value);
    if (type == "NFC") {
      spec_.nfc = true;
    } else if (type == "Sequence") {
      for (const json& part : list(value, "normalizers")) normalizer(part);
    } else {
      refuse("normalizer " + type + " is not supported; NFC or none is");
    }
  }

  const json& list(const json& object, const char* name) const {
    const json& value = member(object, name);
    if (!value.is_array()) refuse(std::string(name) + " must be a list");
    return value;
  }

  void pre_tokenizer(const json& value) {
    bool byte_level = false;
    pre_tokenizer_part(value, byte_level);
    if (!byte_level) refuse("pre_tokenizer has no ByteLevel; only byte-level BPE is supported");
    if (spec_.split_patterns.size() > kMaxSplits) {
      refuse("pre_tokenizer has " + std::to_string(spec_.split_patterns.size()) +
             " patterns; allowed are at most " + std::to_string(kMaxSplits));
    }
  }

  void pre_tokenizer_part(const json& value, bool& byte_level) {
    const std::string type = type_of(value);
    if (byte_level) refuse("pre_tokenizer " + type + " after ByteLevel is not supported");
    if (type == "Sequence") {
      for (const json& part : list(value, "pretokenizers")) pre_tokenizer_part(part, byte_level);
    } else if (type == "Split") {
      const json& behavior = member(value, "behavior");
      if (behavior != "Isolated" || flag(value, "invert", false)) {
        refuse("Split with behavior " + behavior.dump() +
               " or invert is not supported; \"Isolated\" is");
      }
      const json& pattern = member(value, "pattern");
      const json& regex = pattern.is_object() ? member(pattern, "Regex") : pattern;
      if (!regex.is_string()) refuse("Split without a pattern.Regex is not supported");
      spec_.split_patterns.push_back(regex.get<std::string>());
    } else if (type == "ByteLevel") {
      byte_level = true;
      if (flag(value, "add_prefix_space", true)) {
        refuse("ByteLevel with add_prefix_space is not supported");
      }
      if (flag(value, "use_regex", true)) spec_.split_patterns.push_back(kGpt2Pattern);
    } else {
      refuse("pre_tokenizer " + type + " is not supported; Split and ByteLevel are");
    }
  }

  void decoder(const json& value) {
    if (type_of(value) == "Sequence" && list(value, "decoders").size() == 1) {
      decoder(member(value, "decoders")[0]);
    } else if (type_of(value) != "ByteLevel") {
      refuse("decoder " + type_of(value) + " is not supported; ByteLevel is");
    }
  }

  void post_processor(const json& value) {
    if (value.is_null()) return;
    const std::string type = type_of(value);
    if (type == "Sequence") {
      for (const json& part : list(value, "processors")) post_processor(part);
    } else if (type == "TemplateProcessing") {
      post_template(value);
    } else if (type != "ByteLevel") {
      refuse("post_processor " + type + " is not supported; TemplateProcessing and ByteLevel are");
    }
  }

  void post_template(const json& value) {
    bool behind = false;
    for (const json& part : list(value, "single")) {
      if (!part.is_object()) refuse("post_processor.single must hold objects");
      if (part.contains("Sequence")) {
        behind = true;
        continue;
      }
      const json& token = member(part, "SpecialToken");
      const json& name = token.is_object() ? member(token, "id") : token;
      if (!name.is_string()) refuse("post_processor.single: SpecialToken without an id");
      const json& table = member(value, "special_tokens");
      const json& entry =
          table.is_object() ? member(table, name.get<std::string>().c_str()) : table;
      if (!entry.is_object()) refuse("post_processor.special_tokens lacks " + name.dump());
      for (const json& item : list(entry, "ids")) {
        const TokenId id = integer_id(item, name.get<std::string>());
        if (!taken_.count(id)) {
          refuse("post_processor's token " + name.dump() + " has id " + std::to_string(id) +
                 ", which no token has");
        }
        (behind ? spec_.post_suffix : spec_.post_prefix).push_back(id);
      }
    }
  }

  // --- both ---

  /// `consecutive`: the id must be the next free one (the reference would renumber it silently).
  void add_token(const json& value, TokenId id, bool consecutive) {
    const json& content = value.is_object() ? member(value, "content") : value;
    if (!content.is_string() || content == "") {
      refuse("the added token with id " + std::to_string(id) + " has no content");
    }
    AddedToken token;
    token.id = id;
    token.content = content.get<std::string>();
    token.single_word = flag(value, "single_word", false);
    token.lstrip = flag(value, "lstrip", false);
    token.rstrip = flag(value, "rstrip", false);
    token.special = flag(value, "special", false);
    token.normalized = flag(value, "normalized", !token.special);
    const std::string name = "added token \"" + token.content + "\"";
    if (const auto it = ids_.find(token.content); it != ids_.end()) {
      if (it->second != id) {
        refuse(name + " has id " + std::to_string(id) + ", but the vocabulary has it with id " +
               std::to_string(it->second));
      }
      for (const AddedToken& other : spec_.added_tokens) {
        if (other.content == token.content)
          refuse(name + " (id " + std::to_string(id) + ") is there twice");
      }
    } else {
      if (const auto clash = taken_.find(id); clash != taken_.end()) {
        refuse(name + " has id " + std::to_string(id) + ", which is the id of \"" + clash->second +
               "\"");
      }
      if (consecutive && id != next_id_) {
        refuse(name + " has id " + std::to_string(id) + ", but the next free id is " +
               std::to_string(next_id_));
      }
      if (id >= 4 * next_id_ + 4096) refuse(name + " has an id far outside the vocabulary");
      ids_.emplace(token.content, id);
      taken_.emplace(id, token.content);
      next_id_ = std::max(next_id_, id + 1);
    }
    spec_.added_tokens.push_back(std::move(token));
  }

  // --- vocab.json + merges.txt ---

  void read_slow() {
    if (!exists("merges.txt")) {
      file_ = "vocab.json";
      refuse("there is no merges.txt (and no tokenizer.json) beside it");
    }
    const json config = read_object("tokenizer_config.json");
    slow_pipeline(member(config, "tokenizer_class"));
    if (flag(config, "add_prefix_space", false)) refuse("add_prefix_space is not supported");
    if (flag(config, "add_bos_token", false)) refuse("add_bos_token is not supported here");
    read_vocab(read_object("vocab.json"));
    file_ = "merges.txt";
    read_merges_text(read_text_file(path(file_), kMaxFileBytes, ErrorCode::kInvalidModel));
    slow_added_tokens(member(config, "added_tokens_decoder"));
  }

  void slow_pipeline(const json& tokenizer_class) {
    std::string name = tokenizer_class.is_string() ? tokenizer_class.get<std::string>() : "";
    if (name.size() > 4 && name.ends_with("Fast")) name.resize(name.size() - 4);
    if (name == "Qwen2Tokenizer" || name == "DreamTokenizer") {
      spec_.nfc = true;
      spec_.split_patterns.push_back(kQwen2Pattern);
    } else if (name == "GPT2Tokenizer") {
      spec_.split_patterns.push_back(kGpt2Pattern);
    } else {
      refuse("tokenizer_class " + tokenizer_class.dump() +
             " has no tokenizer.json and its pre-tokenizer is not known; known are Qwen2Tokenizer, "
             "DreamTokenizer and GPT2Tokenizer");
    }
  }

  void read_merges_text(const std::string& text) {
    size_t begin = 0;
    for (bool first = true; begin < text.size(); first = false) {
      size_t end = std::min(text.find('\n', begin), text.size());
      std::string line = text.substr(begin, end - begin);
      begin = end + 1;
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.empty() || (first && line.starts_with("#version"))) continue;
      merge_line(line);
    }
  }

  void slow_added_tokens(const json& decoder_table) {
    std::vector<std::pair<TokenId, json>> tokens;
    if (decoder_table.is_object() && !decoder_table.empty()) {
      file_ = "tokenizer_config.json";
      for (const auto& [key, token] : decoder_table.items()) {
        const json number = json::parse(key, nullptr, false);
        tokens.emplace_back(integer_id(number, key), token);
      }
    } else if (exists("added_tokens.json")) {
      const json table = read_object("added_tokens.json");
      for (const auto& [text, id] : table.items()) {
        tokens.emplace_back(integer_id(id, text), json{{"content", text}, {"special", true}});
      }
    }
    std::sort(tokens.begin(), tokens.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [id, token] : tokens) add_token(token, id, false);
  }

  std::string folder_;
  std::string file_;
  TokenizerSpec spec_;
  std::unordered_map<std::string, TokenId> ids_;
  std::unordered_map<TokenId, std::string> taken_;
  TokenId next_id_ = 0;
};

}  // namespace

nlohmann::json read_model_json(const std::string& path) {
  if (!std::filesystem::exists(path)) return json::object();
  return read_json_file(path, ErrorCode::kInvalidModel,
                        {kMaxFileBytes, kMaxDepth, /*unique_keys=*/false});
}

TokenizerSpec read_tokenizer_files(const std::string& folder) { return Reader(folder).read(); }

}  // namespace bicached
