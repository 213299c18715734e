#include "cache_index/prefix_tree.h"

#include <algorithm>

#include "bicached/error.h"

namespace bicached {
namespace {

size_t num_shared(std::span<const TokenId> a, std::span<const TokenId> b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

/// What is shared by the same number of prompts is one step.
std::vector<PathStep> merged(std::vector<PathStep> path) {
  for (size_t i = path.size(); i-- > 1;) {
    if (path[i - 1].uses == path[i].uses) {
      path.erase(path.begin() + static_cast<std::ptrdiff_t>(i - 1));
    }
  }
  return path;
}

}  // namespace

/// An edge with the node at its end.
struct PrefixTree::Node {
  std::string salt;  // of the root only
  Node* parent = nullptr;
  std::vector<TokenId> ids;  // of the edge; empty in a root
  std::map<TokenId, std::unique_ptr<Node>> children;
  int uses = 0;
  uint64_t last_use = 0;
};

PrefixTree::PrefixTree(size_t max_tokens) : max_tokens_(max_tokens) {}
PrefixTree::~PrefixTree() = default;

void PrefixTree::clear() {
  leaves_.clear();
  roots_.clear();
  num_tokens_ = 0;
}

std::vector<PathStep> PrefixTree::add(const std::string& salt, std::span<const TokenId> ids) {
  ++now_;
  std::unique_ptr<Node>& root = roots_[salt];
  if (!root) {
    root = std::make_unique<Node>();
    root->salt = salt;
  }
  std::vector<PathStep> path;
  Node* node = root.get();
  for (size_t done = 0; done < ids.size();) {
    const auto child = node->children.find(ids[done]);
    if (child == node->children.end()) {
      append_leaf(*node, ids.subspan(done));
      node = node->children.at(ids[done]).get();
    } else {
      Node& next = *child->second;
      const size_t shared = num_shared(ids.subspan(done), next.ids);
      if (shared < next.ids.size()) split(next, shared);
      node = &next;
    }
    // The prompt's path becomes young as a whole, so that a leaf is never older than what leads to
    // it.
    if (node->children.empty() && node->last_use != 0) leaves_.erase(node->last_use);
    node->last_use = now_;
    ++node->uses;
    done += node->ids.size();
    path.push_back({static_cast<int>(done), node->uses});
    if (node->children.empty()) leaves_[now_] = node;
  }
  while (num_tokens_ > max_tokens_ && leaves_.size() > 1) forget_oldest();
  return merged(std::move(path));
}

std::vector<PathStep> PrefixTree::find(const std::string& salt,
                                       std::span<const TokenId> ids) const {
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return {};
  std::vector<PathStep> path;
  const Node* node = root->second.get();
  for (size_t done = 0; done < ids.size();) {
    const auto child = node->children.find(ids[done]);
    if (child == node->children.end()) break;
    node = child->second.get();
    const size_t shared = num_shared(ids.subspan(done), node->ids);
    done += shared;
    path.push_back({static_cast<int>(done), node->uses});
    if (shared < node->ids.size()) break;
  }
  return merged(std::move(path));
}

/// Cuts a node's edge after `at` tokens: the node keeps the front, a new child takes the rest.
void PrefixTree::split(Node& node, size_t at) {
  auto rest = std::make_unique<Node>();
  const auto cut = node.ids.begin() + static_cast<std::ptrdiff_t>(at);
  rest->ids.assign(cut, node.ids.end());
  rest->parent = &node;
  rest->uses = node.uses;
  rest->last_use = node.last_use;
  rest->children = std::move(node.children);
  for (auto& [id, child] : rest->children) child->parent = rest.get();
  if (rest->children.empty()) leaves_[rest->last_use] = rest.get();
  node.ids.erase(cut, node.ids.end());
  node.children.clear();
  node.children.emplace(rest->ids.front(), std::move(rest));
}

void PrefixTree::append_leaf(Node& parent, std::span<const TokenId> ids) {
  auto leaf = std::make_unique<Node>();
  leaf->ids.assign(ids.begin(), ids.end());
  leaf->parent = &parent;
  // A leaf that grows a child is none any more.
  if (parent.children.empty() && parent.parent) leaves_.erase(parent.last_use);
  parent.children.emplace(ids.front(), std::move(leaf));
  num_tokens_ += ids.size();
}

void PrefixTree::forget_oldest() {
  Node* leaf = leaves_.begin()->second;
  leaves_.erase(leaves_.begin());
  num_tokens_ -= leaf->ids.size();
  Node* parent = leaf->parent;
  parent->children.erase(leaf->ids.front());
  if (!parent->children.empty()) return;
  if (parent->parent) {
    leaves_[parent->last_use] = parent;
  } else {
    roots_.erase(std::string(parent->salt));
  }
}

void PrefixTree::check_integrity() const {
  size_t tokens = 0, leaves = 0;
  std::vector<const Node*> open;
  for (const auto& [salt, root] : roots_) open.push_back(root.get());
  while (!open.empty()) {
    const Node* node = open.back();
    open.pop_back();
    tokens += node->ids.size();
    if (node->children.empty() && node->parent) {
      ++leaves;
      const auto it = leaves_.find(node->last_use);
      if (it == leaves_.end() || it->second != node) {
        throw Error(ErrorCode::kInternal, "prefix tree: a leaf is missing in the order of age");
      }
    }
    for (const auto& [id, child] : node->children) open.push_back(child.get());
  }
  if (tokens != num_tokens_ || leaves != leaves_.size()) {
    throw Error(ErrorCode::kInternal, "prefix tree: the accounts don't add up");
  }
}

int uses_at(std::span<const PathStep> path, int length) {
  const auto step = std::ranges::lower_bound(path, length, {}, &PathStep::length);
  return step == path.end() ? 0 : step->uses;
}

}  // namespace bicached
