#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <utility>

namespace bicached {

/// A map of at most so many values; a new one takes the place of the one touched longest ago.
template <class Key, class Value>
class LruMap {
 public:
  /// `fresh`: what a key begins with.
  explicit LruMap(size_t max_size, Value fresh = {}) : max_size_(max_size), fresh_(fresh) {}
  LruMap(const LruMap&) = delete;
  LruMap& operator=(const LruMap&) = delete;

  /// The value of a key, made if there is none. It is the youngest now, and stays where it is.
  Value& touch(const Key& key) {
    if (const auto it = by_key_.find(key); it != by_key_.end()) {
      items_.splice(items_.begin(), items_, it->second);
      return it->second->second;
    }
    items_.emplace_front(key, fresh_);
    by_key_[key] = items_.begin();
    if (items_.size() > max_size_) {
      by_key_.erase(items_.back().first);
      items_.pop_back();
    }
    return items_.front().second;
  }
  /// Null: there is none.
  const Value* find(const Key& key) const {
    const auto it = by_key_.find(key);
    return it == by_key_.end() ? nullptr : &it->second->second;
  }
  bool contains(const Key& key) const { return by_key_.contains(key); }
  size_t size() const { return items_.size(); }
  void clear() {
    by_key_.clear();
    items_.clear();
  }

  /// Pairs of key and value, the youngest first.
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }
  auto rbegin() const { return items_.rbegin(); }
  auto rend() const { return items_.rend(); }

 private:
  using Items = std::list<std::pair<Key, Value>>;
  const size_t max_size_;
  const Value fresh_;
  Items items_;
  std::map<Key, typename Items::iterator> by_key_;
};

}  // namespace bicached
