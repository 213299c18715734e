#include "text/bpe.h"

#include <algorithm>
#include <queue>

#include "bicached/error.h"
#include "text/utf8.h"

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

struct Candidate {
  int rank;
  int position;
  TokenId left, right, merged;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

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
  byte_ids_.fill(-1);
  for (const auto& [bytes, id] : entries) {
    if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    if (ignore_merges) words_.emplace(bytes, id);
  }
  for (size_t b = 0; b < 256; ++b) {
    if (byte_ids_[b] < 0) {
      throw Error(ErrorCode::kInvalidModel,
                  "the vocabulary has no entry for byte " + std::to_string(b) + " (symbol \"" +
                      bytes_to_symbols(std::string(1, static_cast<char>(b))) +
                      "\"), so some text can't be encoded; all 256 byte symbols are needed");
    }
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
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int left) {
    const int right = left < 0 ? -1 : at(left).next;
    if (right < 0) return;
    if (const Target* target = find(at(left).id, at(right).id)) {
      queue.push({target->rank, left, at(left).id, at(right).id, target->merged});
    }
  };
  for (int i = 0; i < count; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = at(best.position);
    // Entries are not taken out when a neighbour merges; the stale ones are passed over here.
    if (!left.alive || left.id != best.left || left.next < 0 || at(left.next).id != best.right) {
      continue;
    }
    Symbol& right = at(left.next);
    right.alive = false;
    left.id = best.merged;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = best.position;
    offer(left.previous);
    offer(best.position);
  }
  for (int i = 0; i >= 0 && i < count; i = at(i).next) ids.push_back(at(i).id);
}

}  // namespace bicached
