#include "decode/probe.h"

#include <algorithm>

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
  out.commits = canvas.generation_end() - canvas.generation_begin() - canvas.num_masked();
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
  const std::optional<SlabId> frozen = denoiser.open_slab(num_tokens);
  if (!frozen) {
    denoiser.close_slab(*shadow);
    return nullptr;
  }
  return std::unique_ptr<Probe>(new Probe(denoiser, std::move(plan), num_tokens, *shadow, *frozen));
}

Probe::Probe(Denoiser& denoiser, Plan plan, int num_tokens, SlabId shadow, SlabId frozen)
    : denoiser_(denoiser),
      plan_(std::move(plan)),
      num_tokens_(num_tokens),
      shadow_(shadow),
      frozen_(frozen) {
  plan_.sampling.temperature = 0;
  plan_.sampling.num_top_logprobs = -1;
  top_ = static_cast<int>(plan_.depths.size()) - 1;
  while (assumed_ < top_ && depth_of(assumed_ + 1) <= plan_.assumed_safe) ++assumed_;
}

Probe::~Probe() {
  denoiser_.close_slab(shadow_);
  denoiser_.close_slab(frozen_);
}

std::optional<ProbeVerdict> Probe::commits() const {
  const bool differed = staleness_.bad < ProbeVerdict::kNever;
  if (!looked_at_staleness_ || (lost_cases_ && !differed)) return std::nullopt;
  return staleness_;
}

void Probe::add(ProbeCase next) {
  if (next.decisive.empty()) return;
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
    test_.reset();
    if (is_first_case_) frozen_at_ = cases_.front().commits;
    frozen_wanted_ = has_frozen_ && !is_first_case_;
    if (!stopped_) begin_search();
    if (test_ || frozen_wanted_) return;
    is_first_case_ = false;
    cases_.pop_front();
  }
}

void Probe::begin_search() {
  agreed_ = assumed_;
  lowest_bad_ = search_end_ = top_ + 1;
  if (top_ > assumed_) {
    test_ = top_;
  } else {
    end_search();
  }
}

int Probe::depth_of(int index) const {
  return index == kFill ? 0 : plan_.depths[static_cast<size_t>(index)];
}

/// Given that `failed` decided otherwise, a shallower depth mostly does too where their rates are
/// nearly the same.
bool Probe::is_hopeless(int index, int failed) const {
  if (plan_.thorough) return false;
  const double rate = plan_.rates[static_cast<size_t>(index)];
  const double failed_rate = plan_.rates[static_cast<size_t>(failed)];
  return failed_rate > 0 && 1.0 - rate / failed_rate < kLeastChance;
}

void Probe::next_test(bool agreed) {
  const int index = *test_;
  test_.reset();
  if (index == kFill) return end_search();
  if (agreed) {
    agreed_ = index;
    // What agreed in the first forward lives on as the frozen shadow.
    if (is_first_case_) {
      std::swap(shadow_, frozen_);
      has_frozen_ = true;
    }
  } else {
    search_end_ = lowest_bad_ = index;
  }
  while (search_end_ - agreed_ > 1) {
    const int middle = agreed_ + (search_end_ - agreed_) / 2;
    if (!is_hopeless(middle, lowest_bad_)) {
      test_ = middle;
      return;
    }
    search_end_ = middle;
  }
  if (is_first_case_ && !has_frozen_ && plan_.thorough) {
    test_ = kFill;
    return;
  }
  end_search();
}

void Probe::end_search() {
  const bool tested = agreed_ > assumed_;
  if (lowest_bad_ <= top_) depth_.bad = std::min(depth_.bad, depth_of(lowest_bad_));
  const int good = tested ? depth_of(agreed_) : 0;
  depth_.good = is_first_case_ ? good : std::min(depth_.good, good);
  top_ = tested ? agreed_ : assumed_;
  // Below nothing is left to find out.
  if (top_ <= assumed_) stopped_ = true;
}

int Probe::num_rows() const {
  if (cases_.empty()) return 0;
  int rows = 0;
  const int behind = num_tokens_ - plan_.prefix_len;
  if (test_) {
    const bool prefix_runs = depth_of(*test_) < denoiser_.info().num_layers;
    rows += behind + (prefix_runs ? plan_.prefix_len : 0);
  }
  return rows + (frozen_wanted_ ? behind : 0);
}

int Probe::num_logit_rows() const {
  if (cases_.empty()) return 0;
  const int shadows = (test_ ? 1 : 0) + (frozen_wanted_ ? 1 : 0);
  return shadows * static_cast<int>(cases_.front().masked.size());
}

void Probe::append_to(Forward& forward) {
  if (test_) {
    const int depth = depth_of(*test_);
    // kFill's K/V stay, so they go straight to the frozen slab.
    const SlabId slab = *test_ == kFill ? frozen_ : shadow_;
    if (depth > 0) denoiser_.load_entry(plan_.entry, slab, depth);
    append_shadow(forward, slab, depth);
  }
  if (frozen_wanted_) append_shadow(forward, frozen_, std::nullopt);
}

/// A shadow of the front case: a forward with a refresh at this depth, or without one.
void Probe::append_shadow(Forward& forward, SlabId slab, std::optional<int> refresh_depth) {
  const ProbeCase& now = cases_.front();
  PlanState state;
  state.length = num_tokens_;
  state.num_layers = denoiser_.info().num_layers;
  state.refresh_due = refresh_depth.has_value();
  state.prefix.prefix_len = plan_.prefix_len;
  state.prefix.depth = refresh_depth.value_or(0);
  int group_of_suffix = 0;
  for (const RowSpan& span : plan_rows(state)) {
    RowGroup group;
    group.slab = slab;
    group.begin = span.begin;
    group.end = span.end;
    group.enter_layer = span.enter_layer;
    group.key_end = num_tokens_;
    if (span.enter_layer == 0) {
      group.tokens.assign(now.tokens.begin() + span.begin, now.tokens.begin() + span.end);
      group_of_suffix = static_cast<int>(forward.groups.size());
    } else {
      group.enter_from = plan_.entry;
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
  const size_t count = cases_.front().masked.size();
  const bool tested = test_.has_value(), froze = frozen_wanted_;
  const auto check = [&](std::span<const RowResult> of) {
    const bool same = agrees(of);
    ++num_checks_;
    num_disagreements_ += same ? 0 : 1;
    return same;
  };
  if (froze) {
    looked_at_staleness_ = true;
    if (!check(results.last(count))) {
      // An interval of as many tokens would have refreshed just before.
      staleness_.good = cases_.front().commits - frozen_at_;
      staleness_.bad = staleness_.good + 1;
      has_frozen_ = false;
    }
    frozen_wanted_ = false;
  }
  if (tested) {
    const bool fill = *test_ == kFill;
    if (fill) has_frozen_ = true;
    next_test(fill || check(results.first(count)));
  }
  if (test_ || frozen_wanted_) return;
  is_first_case_ = false;
  cases_.pop_front();
  begin_case();
}

}  // namespace bicached
