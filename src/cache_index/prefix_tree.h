#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// How many recent prompts began like this one: `uses` of them (this one included) share at least
/// the first `length` tokens.
struct PathStep {
  int length = 0;
  int uses = 0;
  bool operator==(const PathStep&) const = default;
};

/// Recent prompts as a radix tree over their token ids, one for each salt: which prefixes are
/// shared. Holds a bounded number of tokens and forgets the prompts that were not seen for longest.
/// Numbers only; engine thread only.
class PrefixTree {
 public:
  explicit PrefixTree(size_t max_tokens);
  ~PrefixTree();

  /// Remembers a prompt and returns the points on its way at which others part from it, ascending
  /// in length and falling in uses; the last is its whole length.
  std::vector<PathStep> add(const std::string& salt, std::span<const TokenId> ids);
  /// The same without remembering it.
  std::vector<PathStep> find(const std::string& salt, std::span<const TokenId> ids) const;
  void clear();

  size_t num_tokens() const { return num_tokens_; }
  /// Throws kInternal unless the account of tokens and the order of age agree with the tree.
  void check_integrity() const;

 private:
  struct Node;
  void split(Node& node, size_t at);
  void append_leaf(Node& parent, std::span<const TokenId> ids);
  void forget_oldest();

  const size_t max_tokens_;
  size_t num_tokens_ = 0;
  uint64_t now_ = 0;                                    // prompts seen
  std::map<std::string, std::unique_ptr<Node>> roots_;  // by salt
  std::map<uint64_t, Node*> leaves_;                    // by age; a prompt ends in one leaf
};

/// Uses of the first `length` tokens, from `PrefixTree::add`; 0 beyond the prompt.
int uses_at(std::span<const PathStep> path, int length);

}  // namespace bicached
