#include "app/model_folder.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/machine_limits.h"
#include "bicached/error.h"
#include "bicached/load.h"
#include "bicached/unmasker.h"
#include "config/decode_defaults.h"
#include "config/reuse_start.h"
#include "engine/prefix_cache.h"

namespace bicached {
namespace {

/// Below this, loading is over before a reader has seen the first line.
constexpr int64_t kShowFromBytes = 256LL << 20;

/// Prints how far loading is: on a terminal one line that counts, else a line every tenth.
class ProgressLine {
 public:
  void show(int64_t done_bytes, int64_t total_bytes) {
    if (total_bytes < kShowFromBytes) return;
    const int percent = static_cast<int>(done_bytes * 100 / total_bytes);
    const int step = is_terminal_ ? 1 : 10;
    if (percent / step == shown_percent_ / step && shown_percent_ >= 0) return;
    shown_percent_ = percent;
    const char* end = !is_terminal_ || percent == 100 ? "\n" : "";
    std::fprintf(stderr, "%sloading weights: %3d %% of %.1f GB%s", is_terminal_ ? "\r" : "",
                 percent, static_cast<double>(total_bytes) * 1e-9, end);
    std::fflush(stderr);
  }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) == 1;
  int shown_percent_ = -1;
};

}  // namespace

TextTools load_text_tools(const std::string& folder, const ModelInfo& model) {
  TextTools tools;
  tools.tokenizer = Tokenizer::load(folder);
  if (tools.tokenizer->vocab_size() > model.vocab_size) {
    throw Error(ErrorCode::kInvalidModel, folder + ": the tokenizer's greatest id is " +
                                              std::to_string(tools.tokenizer->vocab_size() - 1) +
                                              ", but the model's vocabulary ends at " +
                                              std::to_string(model.vocab_size - 1) +
                                              ": the tokenizer is another model's");
  }
  tools.chat_template = ChatTemplate::load(folder, *tools.tokenizer);
  if (!tools.chat_template && !model.chat_template.empty()) {
    tools.chat_template =
        ChatTemplate::compile(model.chat_template, "", "", tools.tokenizer->added_token_texts());
    tools.has_family_template = true;
  }
  return tools;
}

DecodeSettings load_decode_defaults(const Settings& settings, const ModelInfo& model) {
  DecodeSettings resolved =
      resolve_decode_defaults(settings.decode, settings.model.path, model.decoder);
  if (const int block = model.attention_block; block > 0) {
    const int wanted = settings.decode.block_length;
    if (wanted != -1 && wanted != block) {
      throw Error(ErrorCode::kInvalidSettings,
                  "block_length is " + std::to_string(wanted) +
                      "; this model attends by blocks of " + std::to_string(block) +
                      ", which is the only value it takes",
                  "block_length");
    }
    resolved.block_length = block;
  }
  DecodeParams probe;
  probe.algorithm = resolved.algorithm;
  try {
    make_unmasker(probe);
  } catch (const Error& error) {
    throw Error(ErrorCode::kInvalidSettings, error.what(), "algorithm");
  }
  return resolved;
}

CacheSettings load_cache_settings(const Settings& settings, const ModelInfo& model) {
  check_cache_settings(settings.cache, model.num_layers);
  CacheSettings cache = settings.cache;
  cache.start = load_reuse_start(settings.model.path, model);
  if (cache.cache_bytes < 0) {
    cache.cache_bytes = cache.budget_bytes();
    if (model.device == "cpu") {  // a card's memory is not the container's
      const int64_t left = read_machine_limits().free_memory_bytes - model.weight_bytes;
      cache.cache_bytes = std::clamp<int64_t>(left / 4, 0, cache.cache_bytes);
    }
  }
  return cache;
}

std::unique_ptr<Denoiser> load_with_progress(const Settings& settings) {
  ProgressLine line;
  const auto show = [&line](int64_t done_bytes, int64_t total_bytes) {
    line.show(done_bytes, total_bytes);
  };
  return load_denoiser(settings.model, show,
                       {settings.cache.budget_bytes(), settings.engine.max_rows_per_forward});
}

}  // namespace bicached
