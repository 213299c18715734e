// What connections may hold in sum.
#include <algorithm>
#include <string>
#include <utility>

#include "bicached/error.h"
#include "http/poller.h"

namespace bicached {
namespace {

using Phase = RequestReader::Phase;

/// What is shorter is not counted: all connections together could hold 32 MB of heads, 64 of bodies
/// and 64 of answers.
constexpr size_t kSmallHead = 8 << 10, kSmallBody = 16 << 10, kSmallAnswer = 16 << 10;
/// A head arrives at once, but from clients that mean no good, who need no key for it.
constexpr size_t kMostHeadBytes = 16 << 20;
/// Of answers that are not taken.
constexpr size_t kMostAnswerBytes = 64 << 20;
/// So many of the longest bodies may arrive at a time. JSON takes up to thirty times its text once
/// it is parsed, so that only few of them may be worked on.
constexpr size_t kMaxHeldBodies = 16, kMaxWorkingBodies = 2;

size_t over(size_t num_bytes, size_t small) { return num_bytes > small ? num_bytes : 0; }

}  // namespace

/// Of those that count, the one whose deadline comes first; the end: there is none.
template <typename Counts>
auto Poller::first_due(Counts counts) {
  auto first = waiting_.end();
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    if (!counts(it->second)) continue;
    if (first == waiting_.end() || it->second.deadline < first->second.deadline) first = it;
  }
  return first;
}

/// Closes the connection that has been idle longest: who asks for nothing keeps nobody else out.
/// False: all have asked for something.
bool Poller::make_place() {
  constexpr int kMaxTries = 8;  // each looks at all
  for (int tries = 0; tries < kMaxTries && !has_place(); ++tries) {
    const auto idlest = first_due([](const Waiting& waiting) {
      return waiting.phase == Phase::kIdle && !waiting.closing &&
             !waiting.connection->has_pending();
    });
    if (idlest == waiting_.end()) return false;
    // A request may have arrived that nobody has looked at.
    const Connection::Read result = idlest->second.connection->read_available();
    if (result == Connection::Read::kNothing) {
      end(idlest->first);
    } else {
      advance(idlest->second, result == Connection::Read::kClosed);
    }
  }
  return has_place();
}

/// What a request holds while it arrives.
void Poller::count(Connection& connection) {
  const auto held = [&] { return connection.heads.num_bytes() + connection.bodies.num_bytes(); };
  const size_t before = held();
  const RequestReader& reader = connection.reader();
  if (reader.is_refused()) connection.drop_unread();  // nothing behind it will be read
  const bool in_head = reader.phase() == Phase::kHead;
  connection.heads.set(in_head ? over(connection.num_unread_bytes(), kSmallHead) : 0);
  connection.bodies.set(over(reader.num_body_bytes(), kSmallBody));
  if (held() < before) freed(before - held());
}

void Poller::refuse(Connection& connection, HttpRefusal refusal) {
  connection.reader().refuse(std::move(refusal));
  count(connection);
}

/// Long heads and bodies are bounded in sum: a limit of each alone would let few clients fill the
/// memory.
void Poller::bound(Connection& connection) {
  const auto keep_within = [&](const Share& share, size_t sum, size_t limit, const char* what) {
    if (sum <= limit || share.num_bytes() == 0) return;
    refuse(connection,
           {0, Error(ErrorCode::kQueueFull,
                     std::string("the ") + what + " of requests that arrive have " +
                         std::to_string(limit) + " bytes together already; try again later")});
  };
  count(connection);
  keep_within(connection.heads, held_bytes_.heads, kMostHeadBytes, "heads");
  keep_within(connection.bodies, held_bytes_.bodies,
              kMaxHeldBodies * static_cast<size_t>(options_.max_body_bytes), "bodies");
}

bool Poller::may_work_on(const Connection& connection) const {
  const size_t limit = kMaxWorkingBodies * static_cast<size_t>(options_.max_body_bytes);
  const size_t bytes = connection.bodies.num_bytes(), working = held_bytes_.working;
  return bytes == 0 || working == 0 || working + bytes <= limit;
}

/// Of answers that nobody takes those go that have not moved for longest.
void Poller::bound_answers(Connection& latest) {
  latest.answers.set(over(latest.num_unsent_bytes(), kSmallAnswer));
  while (held_bytes_.answers > kMostAnswerBytes) {
    const auto stalled = first_due([&](const Waiting& waiting) {
      const Connection& other = *waiting.connection;
      return &other != &latest && other.answers.num_bytes() > 0;
    });
    if (stalled == waiting_.end()) return;
    end(stalled->first);
  }
}

}  // namespace bicached
