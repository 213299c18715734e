#include "cache_index/probe_stats.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace bicached {
namespace {

/// Probes that still count: a workload that changes shows after about as many.
constexpr double kOwnMemory = 16, kRelativesMemory = 100, kModelMemory = 400;
/// A prefix is watched at least this closely where it runs deeper than prefixes unlike it would: a
/// change of its questions has to show within so many uses.
constexpr int kLongestGapWhenDeep = 12;
/// A greater depth is worth probes when it spares this share of the layers.
constexpr int kWorthwhileShare = 4;
/// And while all outcomes promise one, so many uses apart: a prefix that is used ten times should
/// not spend them all on learning.
constexpr int kPromisingGap = 3;
/// Refresh depths take many probes to be believed: so many times `probe_rate` until there are.
constexpr double kLearningFactor = 4;
/// Near evidence promises something as long as so many disagree at most, beside the share that is
/// allowed anyway: a single one is too much (fractions: old outcomes fade).
constexpr double kPromisingSlack = 0.5;
/// Probes after which the model's rates tell which tests are hopeless.
constexpr double kEnoughOfModel = 10;
/// The use at which a prefix unlike all known ones is probed first: most prefixes never have so
/// many, and those that have will have more.
constexpr int kFirstProbe = 4;
constexpr size_t kMaxRecords = 20000;
constexpr size_t kShortestBeginning = 8;

void add(std::map<int, Tally>& tallies, const std::vector<int>& ladder, const ProbeVerdict& verdict,
         double memory) {
  for (const int value : ladder) {
    if (value > verdict.good && value < verdict.bad) continue;
    Tally& tally = tallies[value];
    tally.num += 1;
    if (value >= verdict.bad) tally.bad += 1;
    if (tally.num <= memory) continue;
    tally.bad *= memory / tally.num;
    tally.num = memory;
  }
}

/// Uses from one probe to the next at this rate; at 1 every use is probed.
int longest_gap(double rate) { return static_cast<int>(1.0 / std::clamp(rate, 1e-6, 1.0)); }

Tally without(const Tally& all, const Tally& part) {
  return {std::max(0.0, all.bad - part.bad), std::max(0.0, all.num - part.num)};
}

/// Whether there is as much evidence of the last step as is asked for.
bool enough_for(const std::vector<LadderStep>& steps) {
  if (steps.empty()) return true;
  const double enough = steps.back().evidence.near_probes;
  return nearest_outcomes(steps.back(), enough).num >= enough;
}

}  // namespace

PrefixLine prefix_line(const std::string& salt, std::span<const TokenId> ids, const Hash128& self) {
  PrefixLine line;
  line.self = self;
  for (size_t length = kShortestBeginning; length < ids.size(); length *= 2) {
    Hasher hasher;
    hasher.add(salt);
    const auto begin = ids.first(length);
    hasher.add({reinterpret_cast<const char*>(begin.data()), begin.size_bytes()});
    line.ancestors.push_back(hasher.digest());
  }
  return line;
}

CanvasKind CanvasKind::of(int prefix_len, int total_len, int gen_length) {
  const int ratio = static_cast<int>(int64_t{100} * prefix_len / std::max(total_len, 1));
  return {ratio < 50   ? 0
          : ratio < 80 ? 50
                       : 80,
          static_cast<int>(std::bit_ceil(static_cast<unsigned>(gen_length)))};
}

const ProbeStats::Tallies* ProbeStats::find(const Hash128& hash, const CanvasKind& kind) const {
  const auto it = tallies_.find({hash, kind});
  return it == tallies_.end() ? nullptr : &it->second;
}

std::vector<LadderStep> ProbeStats::ladder(const PrefixLine& line, const CanvasKind& kind,
                                           std::map<int, Tally> Tallies::* which) const {
  const auto at = [&](const Tallies* tallies, int value) {
    if (!tallies) return Tally{};
    const auto it = (tallies->*which).find(value);
    return it == (tallies->*which).end() ? Tally{} : it->second;
  };
  const auto model = model_.find(kind.any_ratio());
  std::vector<const Tallies*> levels = {model == model_.end() ? nullptr : &model->second};
  for (const Hash128& ancestor : line.ancestors) levels.push_back(find(ancestor, kind.any_ratio()));
  levels.push_back(find(line.self, kind));
  std::vector<LadderStep> steps;
  for (const int value : settings_.depths) {
    LadderStep step;
    step.value = value;
    step.model = at(levels.front(), value);
    step.own = at(levels.back(), value);
    // Every level holds the next one's probes too.
    for (size_t i = 0; i + 1 < levels.size(); ++i) {
      step.relatives.push_back(without(at(levels[i], value), at(levels[i + 1], value)));
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

std::vector<LadderStep> ProbeStats::depths(const PrefixLine& line, const CanvasKind& kind) const {
  return ladder(line, kind, &Tallies::depths);
}

std::vector<LadderStep> ProbeStats::refresh_depths(const PrefixLine& line,
                                                   const CanvasKind& kind) const {
  std::vector<LadderStep> steps = ladder(line, kind, &Tallies::refresh_depths);
  for (LadderStep& step : steps) step.evidence = kRefreshEvidence;
  return steps;
}

int ProbeStats::safe_refresh_depth(const PrefixLine& line, const CanvasKind& kind) const {
  return greatest_safe(refresh_depths(line, kind), settings_.max_disagreement);
}

bool ProbeStats::knows(const PrefixLine& line, const CanvasKind& kind) const {
  const Tallies* own = find(line.self, kind);
  const Tallies* near =
      line.ancestors.empty() ? own : find(line.ancestors.front(), kind.any_ratio());
  return near && near->num_probes >= std::max(settings_.probe_first, 1);
}

ProbeStats::Turn& ProbeStats::turn_of(const PrefixLine& line, const CanvasKind& kind) {
  const auto [it, is_new] = turns_.try_emplace({line.self, kind});
  Turn& turn = it->second;
  if (is_new && knows(line, kind)) {
    // Those that begin alike were probed: this one takes its place somewhere in the usual gap.
    turn.gap = gap_after(line, kind, 1 << 30);
    turn.next_probe = 1 + static_cast<int64_t>(line.self.low % static_cast<uint64_t>(turn.gap));
  } else if (is_new && knows_model(kind)) {
    turn.next_probe = turn.gap = std::min(kFirstProbe, longest_gap(settings_.probe_rate));
  }
  turn.last_use = ++now_;
  if (turns_.size() > kMaxRecords) drop_oldest();
  return turn;
}

bool ProbeStats::is_due(const PrefixLine& line, const CanvasKind& kind, int within) {
  if (settings_.probe_first == 0 && settings_.probe_rate == 0) return false;
  const Turn& turn = turn_of(line, kind);
  if (turn.uses + within < turn.next_probe) return false;
  // One at a time, but several while there is much to learn.
  const bool learns = !knows(line, kind) || promises(depths(line, kind));
  return turn.num_running < (learns ? std::max(settings_.probe_first, 1) : 1);
}

bool ProbeStats::take_turn(const PrefixLine& line, const CanvasKind& kind) {
  const bool is_due_now = is_due(line, kind);
  Turn& turn = turn_of(line, kind);
  ++turn.uses;
  if (is_due_now) ++turn.num_running;
  return is_due_now;
}

void ProbeStats::give_up(const PrefixLine& line, const CanvasKind& kind) {
  const auto it = turns_.find({line.self, kind});
  if (it != turns_.end() && it->second.num_running > 0) --it->second.num_running;
}

void ProbeStats::skip(const PrefixLine& line, const CanvasKind& kind) {
  give_up(line, kind);
  Turn& turn = turn_of(line, kind);
  turn.gap = gap_after(line, kind, turn.gap);
  turn.next_probe = turn.uses + turn.gap;
}

void ProbeStats::record(const PrefixLine& line, const CanvasKind& kind,
                        const std::optional<ProbeVerdict>& depth,
                        const std::optional<ProbeVerdict>& refresh_depth) {
  const int before = greatest_safe(depths(line, kind), settings_.max_disagreement);
  const auto count = [&](Tallies& tallies, double memory) {
    if (depth) add(tallies.depths, settings_.depths, *depth, memory);
    if (refresh_depth) add(tallies.refresh_depths, settings_.depths, *refresh_depth, memory);
    tallies.num_probes += 1;
    tallies.last_use = ++now_;
  };
  count(model_[kind.any_ratio()], kModelMemory);
  for (const Hash128& ancestor : line.ancestors)
    count(tallies_[{ancestor, kind.any_ratio()}], kRelativesMemory);
  count(tallies_[{line.self, kind}], kOwnMemory);
  ++version_;

  Turn& turn = turns_[{line.self, kind}];
  turn.num_running = std::max(0, turn.num_running - 1);
  const int after = greatest_safe(depths(line, kind), settings_.max_disagreement);
  turn.gap = after != before ? 1 : gap_after(line, kind, turn.gap);
  turn.next_probe = turn.uses + turn.gap;
  while (tallies_.size() > kMaxRecords) drop_oldest();
}

/// How many uses on the prefix is probed again, after a gap of so many. A probe costs about as much
/// as the request, so it has to be worth it: at once while little is known, soon while all outcomes
/// so far promise a much greater depth, else at growing distance, in the end `probe_rate`.
int ProbeStats::gap_after(const PrefixLine& line, const CanvasKind& kind, int gap) const {
  const int usual = longest_gap(settings_.probe_rate);
  if (!knows(line, kind)) return knows_model(kind) ? std::min(gap * 2, usual) : 1;
  std::vector<LadderStep> steps = depths(line, kind);
  if (promises(steps) && settings_.probe_rate > 0) return std::min(kPromisingGap, usual);
  const int depth = greatest_safe(steps, settings_.max_disagreement);
  for (LadderStep& step : steps) {
    step.own = {};
    step.relatives.resize(1);
  }
  const bool is_deep = depth > greatest_safe(steps, settings_.max_disagreement);
  const bool believes = enough_for(refresh_depths(line, kind));
  const int longest = longest_gap(settings_.probe_rate * (believes ? 1 : kLearningFactor));
  return std::clamp(gap >= longest ? longest : gap * 2, 1,
                    is_deep ? std::min(longest, kLongestGapWhenDeep) : longest);
}

/// Whether the nearest outcomes let hope for a depth that spares much more than today's.
bool ProbeStats::promises(const std::vector<LadderStep>& steps) const {
  const int depth = greatest_safe(steps, settings_.max_disagreement);
  const int worthwhile =
      settings_.depths.empty() ? 1 : std::max(1, settings_.depths.back() / kWorthwhileShare);
  return std::ranges::any_of(steps, [&](const LadderStep& step) {
    const Tally near = nearest_outcomes(step, settings_.probe_first);
    return step.value >= depth + worthwhile && near.num > 0 &&
           near.bad <= settings_.max_disagreement * near.num + kPromisingSlack;
  });
}

bool ProbeStats::knows_model(const CanvasKind& kind) const {
  const auto model = model_.find(kind.any_ratio());
  return model != model_.end() && model->second.num_probes >= kEnoughOfModel;
}

void ProbeStats::drop_oldest() {
  const auto oldest = [](auto& map) {
    map.erase(
        std::ranges::min_element(map, {}, [](const auto& item) { return item.second.last_use; }));
  };
  if (tallies_.size() > kMaxRecords) oldest(tallies_);
  if (turns_.size() > kMaxRecords) oldest(turns_);
}

ProbeReport ProbeStats::describe(const PrefixLine& line, const CanvasKind& kind) const {
  ProbeReport report;
  if (kind != kind.any_ratio()) report.min_ratio_percent = kind.ratio_percent;
  report.gen_length = kind.gen_length;
  report.depths = depths(line, kind);
  report.refresh_depths = refresh_depths(line, kind);
  report.depth = measured_depth(report.depths, settings_.max_disagreement);
  report.refresh_depth = safe_refresh_depth(line, kind);
  return report;
}

std::vector<ProbeReport> ProbeStats::report(const PrefixLine& line) const {
  std::vector<ProbeReport> reports;
  for (auto it = turns_.lower_bound({line.self, {}});
       it != turns_.end() && it->first.first == line.self; ++it) {
    reports.push_back(describe(line, it->first.second));
  }
  return reports;
}

std::vector<ProbeReport> ProbeStats::report_model() const {
  std::vector<ProbeReport> reports;
  for (const auto& [kind, tallies] : model_) reports.push_back(describe({}, kind));
  return reports;
}

}  // namespace bicached
