#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

namespace bicached {

void Scheduler::admit(Sequence::Clock::time_point now,
                      const std::function<bool(Sequence&)>& place) {
  for (auto it = waiting_.begin(); it != waiting_.end() && num_running() < settings_.max_running;) {
    if (place(**it)) {
      running_.push_back(std::move(*it));
      it = waiting_.erase(it);
    } else if (is_aged((*it)->submitted, now)) {
      return;  // what comes free is kept for this one
    } else {
      ++it;
    }
  }
}

std::vector<Sequence*> Scheduler::select(Sequence::Clock::time_point now) const {
  struct Ranked {
    int rank;
    Sequence* sequence;
  };
  std::vector<Ranked> order;
  for (const auto& sequence : running_) {
    const bool aged = is_aged(sequence->last_forward, now);
    order.push_back({aged ? 0 : sequence->decoder->next().in_block ? 1 : 2, sequence.get()});
  }
  std::stable_sort(order.begin(), order.end(), [](const Ranked& a, const Ranked& b) {
    return std::tie(a.rank, a.sequence->last_forward) < std::tie(b.rank, b.sequence->last_forward);
  });

  std::vector<Sequence*> selected;
  int num_rows = 0;
  for (const Ranked& ranked : order) {
    const int rows = ranked.sequence->decoder->next().num_rows;
    if (!selected.empty() && num_rows + rows > settings_.max_rows_per_forward) continue;
    selected.push_back(ranked.sequence);
    num_rows += rows;
  }
  return selected;
}

std::vector<std::unique_ptr<Sequence>> Scheduler::take_if(
    const std::function<bool(const Sequence&)>& gone) {
  std::vector<std::unique_ptr<Sequence>> taken;
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
