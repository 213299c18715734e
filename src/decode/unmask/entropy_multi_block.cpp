#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

constexpr UnmaskerParam kEntropyThreshold{{"entropy_threshold", 0, 100, false, false, "nats"},
                                          0.5,
                                          "a token is decided up to this entropy"};
constexpr UnmaskerParam kBlockAddThreshold{
    {"block_add_threshold", 0, 1, false, false, ""},
    0.1,
    "the next block opens when this share of the last open one is decided"};

/// d3LLM's multi-block decoding (arXiv 2601.07568): several blocks are open at once, and each
/// position up to the threshold is decided. The first open block always gets a token, so that it
/// ends. LLaDA's loop also decides the most certain position of all blocks in every forward,
/// Dream's does not.
class EntropyMultiBlock final : public Unmasker {
 public:
  explicit EntropyMultiBlock(const DecodeParams& params)
      : threshold_(static_cast<float>(value_of(kEntropyThreshold, params))),
        opens_next_at_(value_of(kBlockAddThreshold, params)) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    const auto first_block =
        candidates.first(static_cast<size_t>(progress.num_masked_in_first_block));
    const int best_of_all = most_certain(candidates), best_of_first = most_certain(first_block);
    const bool takes_best = progress.schedule == Schedule::kEven;
    const bool first_has_one =
        (takes_best && best_of_all == best_of_first) ||
        std::ranges::any_of(first_block, [&](const Candidate& c) { return passes(c); });
    std::vector<int> chosen;
    for (int i = 0; i < static_cast<int>(candidates.size()); ++i) {
      if (passes(candidates[static_cast<size_t>(i)]) || (takes_best && i == best_of_all) ||
          (!first_has_one && i == best_of_first)) {
        chosen.push_back(i);
      }
    }
    return chosen;
  }

  double opens_next_at() const override { return opens_next_at_; }

 private:
  bool passes(const Candidate& candidate) const { return candidate.entropy <= threshold_; }
  static int most_certain(std::span<const Candidate> candidates) {
    const auto best = std::ranges::min_element(candidates, {}, &Candidate::entropy);
    return static_cast<int>(best - candidates.begin());
  }

  float threshold_;
  double opens_next_at_;
};

}  // namespace

UnmaskerInfo entropy_multi_block_unmasker() {
  return {"entropy_multi_block",
          "Every token up to an entropy, in several blocks at once; a block opens when a share of "
          "the one before is decided (d3LLM).",
          {kEntropyThreshold, kBlockAddThreshold},
          make<EntropyMultiBlock>};
}

}  // namespace bicached
