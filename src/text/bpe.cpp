#include "text/bpe.h"

#include <algorithm>
#include <queue>

#include "base/utf8.h"

namespace bicached {
namespace {

bool is_printable_byte(int b) {
  return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

/// Symbols 0..0x143: printable bytes stand for themselves, the others follow from U+0100 on.
struct Alphabet {
  std::array<char32_t, 256> symbol{};
  std::array<int, 0x144> byte{};
  Alphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      symbol[static_cast<size_t>(b)] = is_printable_byte(b) ? static_cast<char32_t>(b) : next++;
      byte[symbol[static_cast<size_t>(b)]] = b;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet table;
  return table;
}

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

/// A symbol of the word being merged; merged ones leave the chain (length 0).
struct Symbol {
  TokenId id;
  int previous, next;  // -1 at the ends
  bool alive;
};

/// Rank and position of a pair in one number: the smallest is the next to merge.
uint64_t candidate(int rank, int position) {
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(position);
}

}  // namespace

bool symbols_to_bytes(std::string_view symbols, std::string& bytes) {
  bytes.clear();
  for (size_t pos = 0; pos < symbols.size();) {
    const char32_t c = next_code_point(symbols, pos);
    if (c >= alphabet().byte.size() || alphabet().byte[c] < 0) return false;
    bytes += static_cast<char>(alphabet().byte[c]);
  }
  return true;
}

std::string bytes_to_symbols(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(out, alphabet().symbol[static_cast<unsigned char>(c)]);
  return out;
}

Bpe::Bpe(const std::vector<std::pair<std::string, TokenId>>& entries,
         const std::vector<Merge>& merges, bool ignore_merges)
    : ignore_merges_(ignore_merges) {
  for (const auto& [bytes, id] : entries) {
    if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    if (ignore_merges) words_.emplace(bytes, id);
  }
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& m = merges[rank];
    merges_[pair_key(m.left, m.right)] = {static_cast<int>(rank), m.merged};
  }
}

const Bpe::Target* Bpe::find(TokenId left, TokenId right) const {
  const auto it = merges_.find(pair_key(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void Bpe::encode(std::string_view word, std::vector<TokenId>& ids) const {
  if (ignore_merges_) {
    const auto it = words_.find(std::string(word));
    if (it != words_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  const int count = static_cast<int>(word.size());
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (int i = 0; i < count; ++i) {
    symbols.push_back({byte_ids_[static_cast<unsigned char>(word[static_cast<size_t>(i)])], i - 1,
                       i + 1 < count ? i + 1 : -1, true});
  }
  const auto at = [&](int i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto target_at = [&](int left) -> const Target* {
    const int right = left < 0 ? -1 : at(left).next;
    return right < 0 ? nullptr : find(at(left).id, at(right).id);
  };
  std::vector<uint64_t> first;
  first.reserve(word.size());
  for (int i = 0; i < count; ++i) {
    if (const Target* target = target_at(i)) first.push_back(candidate(target->rank, i));
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue({}, std::move(first));
  const auto offer = [&](int left) {
    if (const Target* target = target_at(left)) queue.push(candidate(target->rank, left));
  };
  while (!queue.empty()) {
    const int rank = static_cast<int>(queue.top() >> 32);
    const int position = static_cast<int>(queue.top() & 0xFFFFFFFFu);
    queue.pop();
    // Entries are not taken out when a neighbour merges; the stale ones are passed over here.
    if (!at(position).alive) continue;
    const Target* target = target_at(position);
    if (!target || target->rank != rank) continue;
    Symbol& left = at(position);
    Symbol& right = at(left.next);
    right.alive = false;
    left.id = target->merged;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = position;
    offer(left.previous);
    offer(position);
  }
  for (int i = 0; i >= 0 && i < count; i = at(i).next) ids.push_back(at(i).id);
}

}  // namespace bicached
