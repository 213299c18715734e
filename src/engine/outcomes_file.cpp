#include "engine/outcomes_file.h"

#include <filesystem>

#include "base/hash.h"
#include "base/log.h"
#include "bicached/error.h"

namespace bicached {
namespace {

/// A server with other plans has a file of its own, and leaves this one as it is.
std::string name_of(const std::string& fingerprint, const std::string& ladders) {
  Hasher hasher;
  hasher.add(fingerprint);
  hasher.add(ladders);
  return "probes-" + hasher.digest().hex().substr(0, 16) + ".json";
}

}  // namespace

OutcomesFile::OutcomesFile(const CacheSettings& settings, const std::string& fingerprint,
                           ReuseLearner& learner)
    : settings_(settings),
      learner_(learner),
      file_(settings.state_dir + "/" + name_of(fingerprint, learner.ladders())) {
  load();
}

void OutcomesFile::forget() {
  learner_.forget();
  saved_version_ = -1;  // the file has to forget them too
  if (settings_.state_is_read_only) load();
}

void OutcomesFile::load() {
  if (settings_.state_dir.empty()) return;
  std::error_code error;
  if (!settings_.state_is_read_only) {
    std::filesystem::create_directories(settings_.state_dir, error);
  }
  if (error) {
    throw Error(
        ErrorCode::kInvalidSettings,
        "state_dir is '" + settings_.state_dir + "', which can't be made: " + error.message(),
        "state_dir");
  }
  if (!settings_.state_is_read_only && !file_.lock()) {
    is_locked_out_ = true;
    log_warn("state_dir: another server works with " + file_.path() +
             "; this one starts from what is there, and keeps nothing of its own");
  }
  try {
    const std::optional<std::string> text = file_.read();
    if (text) learner_.from_json(*text, file_.path());
    if (text || !settings_.state_is_read_only) return;
  } catch (const Error& broken) {
    if (settings_.state_is_read_only) throw;
    learner_.forget();
    if (is_locked_out_) return;
    file_.set_aside(broken.what());
    return;
  }
  throw Error(
      ErrorCode::kInvalidSettings,
      "state_dir: there is no " + file_.path() +
          "; a server with this state_dir writes it, or bicached-lab profile --by decisions",
      "state_dir");
}

bool OutcomesFile::has_unsaved() const {
  return !settings_.state_dir.empty() && !settings_.state_is_read_only && !is_locked_out_ &&
         learner_.version() != saved_version_;
}

void OutcomesFile::close() {
  save();
  file_.unlock();
}

void OutcomesFile::save() {
  if (has_unsaved() && file_.write(learner_.to_json())) saved_version_ = learner_.version();
}

}  // namespace bicached
