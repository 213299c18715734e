#include "model/forward_plan.h"

#include <algorithm>
#include <bit>
#include <set>
#include <string>

#include "bicached/error.h"

namespace bicached {
namespace {

[[noreturn]] void defect(int group, const std::string& what) {
  throw Error(ErrorCode::kInternal, "row group " + std::to_string(group) + ": " + what);
}

int leave_layer(const RowGroup& group, int num_layers) {
  return group.leave_layer < 0 ? num_layers : group.leave_layer;
}

void check_group(int index, const RowGroup& group, const ModelConfig& model, int64_t slab_tokens) {
  const int rows = group.num_rows();
  if (rows <= 0) defect(index, "no rows");
  if (std::ranges::adjacent_find(group.rows, std::greater_equal<>()) != group.rows.end()) {
    defect(index, "rows must ascend");
  }
  if (group.row_at(0) < 0 || group.row_at(rows - 1) >= slab_tokens || group.key_end < 1 ||
      group.key_end > slab_tokens) {
    defect(index, "rows or key_end outside the slab of " + std::to_string(slab_tokens) + " tokens");
  }
  const int leave = leave_layer(group, model.num_layers);
  if (group.enter_layer < 0 || group.enter_layer >= leave || leave > model.num_layers) {
    defect(index, "enters at layer " + std::to_string(group.enter_layer) + ", leaves at " +
                      std::to_string(leave) + " of " + std::to_string(model.num_layers));
  }
  if (group.enter_layer > 0) {
    if (group.enter_from == kNoId) defect(index, "enters late without an entry");
    return;
  }
  if (static_cast<int>(group.tokens.size()) != rows) defect(index, "needs a token a row");
  for (const TokenId token : group.tokens) {
    if (token < 0 || token >= model.num_logits) defect(index, "token id out of range");
  }
}

void append_group(LayerSegment& segment, int index, const RowGroup& group, int64_t slab_begin) {
  const int rows = group.num_rows();
  segment.groups.push_back({index, segment.num_rows, rows});
  AttentionSequence* last = segment.sequences.empty() ? nullptr : &segment.sequences.back();
  if (last && last->key_begin == slab_begin && last->num_keys == group.key_end) {
    last->num_rows += rows;
  } else {
    segment.sequences.push_back({segment.num_rows, rows, slab_begin, group.key_end});
  }
  for (int i = 0; i < rows; ++i) {
    segment.positions.push_back(group.row_at(i));
    segment.slots.push_back(slab_begin + group.row_at(i));
  }
  segment.num_rows += rows;
}

/// Where a canvas row lies in the packed tensor.
int64_t packed_row(const PlannedGroup& planned, const RowGroup& group, int row) {
  int64_t i = row - group.begin;
  if (!group.rows.empty()) {
    const auto it = std::lower_bound(group.rows.begin(), group.rows.end(), row);
    i = it != group.rows.end() && *it == row ? it - group.rows.begin() : -1;
  }
  if (i < 0 || i >= planned.num_rows) defect(planned.group, "has no row " + std::to_string(row));
  return planned.first_row + i;
}

/// The rows whose logits are wanted, as the last layer's own small packed tensor.
void plan_wanted(const Forward& forward, ForwardPlan& plan) {
  if (forward.logit_rows.empty()) return;
  const LayerSegment& last = plan.segments.back();
  std::vector<const PlannedGroup*> by_group(forward.groups.size(), nullptr);
  for (const PlannedGroup& planned : last.groups) {
    by_group[static_cast<size_t>(planned.group)] = &planned;
  }
  std::vector<int64_t> rows;
  for (const LogitRow& wanted : forward.logit_rows) {
    const auto g = static_cast<size_t>(wanted.group);
    if (g >= by_group.size() || !by_group[g]) defect(wanted.group, "has no rows in the last layer");
    rows.push_back(packed_row(*by_group[g], forward.groups[g], wanted.row));
  }
  std::vector<int64_t>& wanted_rows = plan.wanted_rows;
  wanted_rows = rows;
  std::ranges::sort(wanted_rows);
  const auto repeated = std::ranges::unique(wanted_rows);
  wanted_rows.erase(repeated.begin(), repeated.end());
  const auto index_of = [&](int64_t row) {
    return std::ranges::lower_bound(wanted_rows, row) - wanted_rows.begin();
  };
  for (const int64_t row : rows) plan.logit_index.push_back(index_of(row));
  for (AttentionSequence sequence : last.sequences) {
    const int64_t first = index_of(sequence.first_row);
    const int64_t end = index_of(sequence.first_row + sequence.num_rows);
    if (first == end) continue;
    sequence.first_row = first;
    sequence.num_rows = end - first;
    plan.wanted.push_back(sequence);
  }
}

}  // namespace

ForwardPlan plan_forward(const Forward& forward, const ModelConfig& model,
                         const SlabAllocator& slabs) {
  ForwardPlan plan;
  if (forward.groups.empty()) throw Error(ErrorCode::kInternal, "a forward without row groups");
  std::set<int> cuts{0};
  for (size_t i = 0; i < forward.groups.size(); ++i) {
    const RowGroup& group = forward.groups[i];
    check_group(static_cast<int>(i), group, model, slabs.range(group.slab).num_tokens);
    cuts.insert(group.enter_layer);
    if (const int leave = leave_layer(group, model.num_layers); leave < model.num_layers) {
      cuts.insert(leave);
    }
    if (group.enter_layer == 0) {
      plan.tokens.insert(plan.tokens.end(), group.tokens.begin(), group.tokens.end());
    }
  }
  for (auto cut = cuts.begin(); cut != cuts.end(); ++cut) {
    LayerSegment segment;
    segment.first_layer = *cut;
    segment.end_layer = std::next(cut) == cuts.end() ? model.num_layers : *std::next(cut);
    for (size_t i = 0; i < forward.groups.size(); ++i) {
      const RowGroup& group = forward.groups[i];
      if (group.enter_layer > *cut || leave_layer(group, model.num_layers) <= *cut) continue;
      append_group(segment, static_cast<int>(i), group, slabs.range(group.slab).begin);
    }
    plan.segments.push_back(std::move(segment));
  }
  plan_wanted(forward, plan);
  return plan;
}

int64_t filled_size(int64_t size, int64_t step) {
  const uint64_t below = std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(size, 2) - 1));
  step = std::max(step, static_cast<int64_t>(below / 16));
  return (size + step - 1) / step * step;
}

void fill_segment(ForwardPlan& plan, size_t segment, int64_t num_rows) {
  LayerSegment& filled = plan.segments[segment];
  filled.num_rows = num_rows;
  filled.positions.resize(static_cast<size_t>(num_rows), 0);
  filled.slots.resize(static_cast<size_t>(num_rows), -1);
  if (segment == 0) plan.tokens.resize(static_cast<size_t>(num_rows), 0);
}

void fill_plan(ForwardPlan& plan, int64_t step) {
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    fill_segment(plan, i, filled_size(plan.segments[i].num_rows, step));
  }
  const auto num_wanted = static_cast<int64_t>(plan.wanted_rows.size());
  plan.wanted_rows.resize(static_cast<size_t>(filled_size(num_wanted, step)), 0);
}

}  // namespace bicached
