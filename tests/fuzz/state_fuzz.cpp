// The file of probe outcomes. What is accepted can be written, and read again.
#include "bicached/settings.h"
#include "cache_index/reuse_learner.h"
#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static const CacheSettings settings;
  refuse_or([&] {
    ReuseLearner learner(settings, 8, {1, 2, 4, 6, 8});
    learner.from_json(std::string(text_of(data, size)), "input");
    const std::string written = learner.to_json();
    ReuseLearner again(settings, 8, {1, 2, 4, 6, 8});
    try {
      again.from_json(written, "written");
    } catch (const Error& error) {
      require(false, error.what());
    }
    std::map<Hash128, std::vector<PlanReport>> report{{ReuseLearner::kEveryPrefix, {}}};
    again.report(report);
  });
  return 0;
}
