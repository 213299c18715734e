#include "decode/probe.h"

#include <algorithm>
#include <bit>

namespace bicached {
namespace {

/// With 0.9, decisions that change only at the next depths go unseen; much lower, near ties between
/// equally good answers count as changes.
constexpr float kSure = 0.7f;
/// A row over this has the most probable token whatever was drawn.
constexpr float kMajority = 0.5f;
/// A test that most likely fails, given that a deeper one failed, is not run.
constexpr double kLeastChance = 0.35;
/// Canvases that wait for their shadows; more only when probes get no room in the forwards.
constexpr size_t kMaxCases = 128;

}  // namespace

ProbeCase ProbeCase::of(const CanvasDecoder& decoder, std::span<const RowResult> results) {
  ProbeCase out;
  const Canvas& canvas = decoder.canvas();
  out.tokens = canvas.tokens();
  out.block = decoder.next().block;
  out.block_begin = decoder.block_begin();
  out.block_end = decoder.block_end();
  size_t best = 0;
  for (int position = decoder.block_begin(); position < decoder.block_end(); ++position) {
    if (!canvas.is_masked(position)) continue;
    const RowResult& result = results[out.masked.size()];
    if (result.probability > results[best].probability) best = out.masked.size();
    if (result.probability >= kSure) out.decisive.emplace_back(position, result.token);
    out.masked.push_back(position);
  }
  if (out.decisive.empty() && !out.masked.empty() && results[best].probability > kMajority) {
    out.decisive.emplace_back(out.masked[best], results[best].token);
  }
  return out;
}

std::unique_ptr<Probe> Probe::start(Denoiser& denoiser, Plan plan, int num_tokens) {
  const std::optional<SlabId> shadow = denoiser.open_slab(num_tokens);
  if (!shadow) return nullptr;
  return std::unique_ptr<Probe>(new Probe(denoiser, std::move(plan), num_tokens, *shadow));
}

Probe::Probe(Denoiser& denoiser, Plan plan, int num_tokens, SlabId shadow)
    : denoiser_(denoiser),
      plan_(std::move(plan)),
      num_tokens_(num_tokens),
      shadow_(shadow),
      ladders_{make_ladder(std::move(plan_.shared)), make_ladder(std::move(plan_.own))} {
  plan_.sampling.temperature = 0;
  plan_.sampling.num_top_logprobs = -1;
}

Probe::~Probe() { denoiser_.close_slab(shadow_); }

Probe::Ladder Probe::make_ladder(Search search) const {
  Ladder ladder;
  if (search.entry == kNoId) return ladder;
  ladder.top = static_cast<int>(plan_.depths.size()) - 1;
  // The deepest is tested in any case: something has to notice when it is no longer safe.
  while (ladder.assumed < ladder.top - 1 && depth_of(ladder.assumed + 1) <= search.assumed_safe) {
    ++ladder.assumed;
  }
  ladder.search = std::move(search);
  return ladder;
}

std::optional<ProbeVerdict> Probe::verdict(const Ladder& ladder) const {
  const bool differed = ladder.verdict.bad < ProbeVerdict::kNever;
  if (!ladder.looked || (lost_cases_ && !differed)) return std::nullopt;
  return ladder.verdict;
}

void Probe::add(ProbeCase next) {
  if (next.decisive.empty()) return;
  if (next.block != block_) num_offered_ = 0;
  block_ = next.block;
  const unsigned before = num_offered_++;
  if (before != 0 && !std::has_single_bit(before)) return;
  if (cases_.size() >= kMaxCases) {
    lost_cases_ = true;
    return;
  }
  cases_.push_back(std::move(next));
  if (cases_.size() == 1) begin_case();
}

/// Sets up the front case; passes over those that ask nothing.
void Probe::begin_case() {
  while (!cases_.empty()) {
    now_ = 0;
    if (begin_search()) return;
    is_first_case_ = false;
    cases_.pop_front();
  }
}

/// The first test of the search at hand or, where it asks nothing, of the next one. False: none.
bool Probe::begin_search() {
  for (; now_ < ladders_.size(); ++now_) {
    Ladder& ladder = ladders_[now_];
    // The first forward's own states change nothing in the first forward.
    const bool tells_nothing = now_ == 1 && is_first_case_;
    if (tells_nothing || ladder.top <= ladder.assumed) continue;
    ladder.agreed = ladder.assumed;
    ladder.lowest_bad = ladder.end = ladder.top + 1;
    test_ = ladder.top;
    return true;
  }
  return false;
}

int Probe::depth_of(int index) const { return plan_.depths[static_cast<size_t>(index)]; }

/// Given that `failed` decided otherwise, a shallower depth mostly does too where their rates are
/// nearly the same.
bool Probe::is_hopeless(int index, int failed) const {
  if (plan_.thorough) return false;
  const std::vector<double>& rates = ladders_[now_].search.rates;
  const double rate = rates[static_cast<size_t>(index)];
  const double failed_rate = rates[static_cast<size_t>(failed)];
  return failed_rate > 0 && 1.0 - rate / failed_rate < kLeastChance;
}

void Probe::next_test(bool agreed) {
  Ladder& ladder = ladders_[now_];
  const int index = *test_;
  test_.reset();
  if (agreed) {
    ladder.agreed = index;
  } else {
    ladder.end = ladder.lowest_bad = index;
  }
  while (ladder.end - ladder.agreed > 1) {
    const int middle = ladder.agreed + (ladder.end - ladder.agreed) / 2;
    if (!is_hopeless(middle, ladder.lowest_bad)) {
      test_ = middle;
      return;
    }
    ladder.end = middle;
  }
  end_search();
}

void Probe::end_search() {
  Ladder& ladder = ladders_[now_];
  ProbeVerdict& verdict = ladder.verdict;
  const bool tested = ladder.agreed > ladder.assumed;
  if (ladder.lowest_bad <= ladder.top) {
    verdict.bad = std::min(verdict.bad, depth_of(ladder.lowest_bad));
  }
  const int good = tested ? depth_of(ladder.agreed) : 0;
  verdict.good = ladder.looked ? std::min(verdict.good, good) : good;
  ladder.looked = true;
  ladder.top = tested ? ladder.agreed : ladder.assumed;
  ++now_;
}

/// A forward that enters at the tested depth: the first one from the stored prefix, or a refresh.
std::vector<RowSpan> Probe::spans() const {
  const bool is_own = now_ == 1;
  PlanState state;
  state.length = num_tokens_;
  state.prompt_len = plan_.prompt_len;
  state.num_layers = denoiser_.info().num_layers;
  state.block_begin = cases_.front().block_begin;
  state.block_end = cases_.front().block_end;
  state.at_first_forward = !is_own;
  state.refresh_due = true;
  state.reuse.prefix_len = plan_.prefix_len;
  (is_own ? state.reuse.refresh_depth : state.reuse.depth) = depth_of(*test_);
  state.logits_shift = denoiser_.info().logits_shift;
  // A prefix or dual cache is not probed: the shadow runs all that is behind the prefix.
  const bool adaptive = plan_.intra_cache == IntraCache::kAdaptive;
  state.reuse.intra_cache = adaptive ? IntraCache::kAdaptive : IntraCache::kNone;
  return plan_rows(state);
}

int Probe::num_rows() const {
  if (!test_) return 0;
  int rows = 0;
  for (const RowSpan& span : spans()) rows += span.end - span.begin;
  return rows;
}

int Probe::num_logit_rows() const {
  return test_ ? static_cast<int>(cases_.front().masked.size()) : 0;
}

void Probe::append_to(Forward& forward) {
  const ProbeCase& now = cases_.front();
  const EntryId entry = ladders_[now_].search.entry;
  denoiser_.load_entry(entry, shadow_, depth_of(*test_));
  int group_of_suffix = 0;
  for (const RowSpan& span : spans()) {
    RowGroup group;
    group.slab = shadow_;
    group.begin = span.begin;
    group.end = span.end;
    group.enter_layer = span.enter_layer;
    group.key_end = num_tokens_;
    if (span.enter_layer == 0) {
      group.tokens.assign(now.tokens.begin() + span.begin, now.tokens.begin() + span.end);
      group_of_suffix = static_cast<int>(forward.groups.size());
    } else {
      group.enter_from = entry;
    }
    row_layers_ += static_cast<int64_t>(span.end - span.begin) *
                   (denoiser_.info().num_layers - span.enter_layer);
    forward.groups.push_back(std::move(group));
  }
  for (const int position : now.masked) {
    LogitRow row;
    row.group = group_of_suffix;
    row.row = std::max(0, position - denoiser_.info().logits_shift);
    row.sampling = &plan_.sampling;
    row.suppress_end_tokens = plan_.suppress_end_tokens;
    forward.logit_rows.push_back(row);
  }
}

bool Probe::agrees(std::span<const RowResult> results) const {
  const ProbeCase& now = cases_.front();
  size_t decisive = 0;
  for (size_t i = 0; i < now.masked.size() && decisive < now.decisive.size(); ++i) {
    if (now.masked[i] != now.decisive[decisive].first) continue;
    if (results[i].token != now.decisive[decisive].second) return false;
    ++decisive;
  }
  return true;
}

void Probe::commit(std::span<const RowResult> results) {
  const bool same = agrees(results);
  ++num_checks_;
  num_disagreements_ += same ? 0 : 1;
  next_test(same);
  if (test_ || begin_search()) return;
  is_first_case_ = false;
  cases_.pop_front();
  begin_case();
}

}  // namespace bicached
