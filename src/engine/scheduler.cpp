#include "engine/scheduler.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace bicached {

void Scheduler::admit(Sequence::Clock::time_point now,
                      const std::function<bool(const Sequence&)>& is_hot,
                      const std::function<Placement(Sequence&)>& place) {
  int room = settings_.max_running - num_running();
  if (room <= 0 || waiting_.empty()) return;
  struct Turn {
    int num_before;  // of the same request
    int rank;
    Sequence* sequence;
  };
  std::map<const ResponseStream::Shared*, int> num_before;
  for (const auto& sequence : running_) ++num_before[sequence->stream.get()];
  std::vector<Turn> order;
  for (const auto& sequence : waiting_) {
    const bool aged = is_aged(sequence->submitted, now);
    const int rank = aged ? 0 : is_hot(*sequence) ? 1 : 2;
    order.push_back({num_before[sequence->stream.get()]++, rank, sequence.get()});
  }
  std::ranges::stable_sort(order, [](const Turn& a, const Turn& b) {
    return std::tie(a.num_before, a.rank) < std::tie(b.num_before, b.rank);
  });
  for (const auto& [ahead, rank, sequence] : order) {
    if (room == 0) break;
    const Placement placement = place(*sequence);
    if (placement == Placement::kPlaced) {
      --room;
      const auto it = std::ranges::find(waiting_, sequence, &std::unique_ptr<Sequence>::get);
      running_.push_back(std::move(*it));
      waiting_.erase(it);
    } else if (placement == Placement::kNoRoom && rank == 0) {
      return;  // what comes free is kept for this one
    }
  }
}

std::vector<Sequence*> Scheduler::select(Sequence::Clock::time_point now, int max_rows,
                                         bool blocks_alone) const {
  struct Ranked {
    int rank;
    Sequence* sequence;
  };
  const auto longest =
      std::ranges::min_element(running_, {}, [](const auto& s) { return s->last_forward; });
  std::vector<Ranked> order;
  for (const auto& sequence : running_) {
    const bool in_block = sequence->in_block();
    if (blocks_alone) {
      if (in_block == (*longest)->in_block()) order.push_back({0, sequence.get()});
      continue;
    }
    const bool aged = is_aged(sequence->last_forward, now);
    order.push_back({aged ? 0 : in_block ? 1 : 2, sequence.get()});
  }
  std::stable_sort(order.begin(), order.end(), [](const Ranked& a, const Ranked& b) {
    return std::tie(a.rank, a.sequence->last_forward) < std::tie(b.rank, b.sequence->last_forward);
  });

  std::vector<Sequence*> selected;
  int num_rows = 0;
  for (const Ranked& ranked : order) {
    const int rows = ranked.sequence->num_rows();
    if (!selected.empty() && num_rows + rows > max_rows) continue;
    selected.push_back(ranked.sequence);
    num_rows += rows;
  }
  return selected;
}

int64_t Scheduler::num_slabs() const {
  int64_t held = 0;
  for (const auto& sequence : running_) held += sequence->num_slabs();
  return held;
}

int64_t Scheduler::num_entries() const {
  int64_t held = 0;
  for (const auto& sequence : running_) held += sequence->num_entries();
  return held;
}

bool Scheduler::any_running(const std::function<bool(Sequence&)>& found) const {
  return std::ranges::any_of(running_, [&](const auto& sequence) { return found(*sequence); });
}

std::vector<std::unique_ptr<Sequence>> Scheduler::take_if(
    const std::function<bool(const Sequence&)>& gone) {
  std::vector<std::unique_ptr<Sequence>> taken;
  taken.reserve(waiting_.size() + running_.size());  // none is lost between two lists
  const auto take_from = [&](auto& list) {
    auto keep = list.begin();
    for (auto& sequence : list) {
      if (gone(*sequence)) {
        taken.push_back(std::move(sequence));
      } else {
        *keep++ = std::move(sequence);
      }
    }
    list.erase(keep, list.end());
  };
  take_from(waiting_);
  take_from(running_);
  return taken;
}

}  // namespace bicached
