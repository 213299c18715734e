#include "jinja/read_json.h"

#include <nlohmann/json.hpp>

namespace {

using namespace bicached::jinja;

/// Builds values while nlohmann's parser reads; it keeps the digits of integers that fit no int64.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Value result;

  bool null() override { return add(Value::none()); }
  bool boolean(bool b) override { return add(Value::boolean(b)); }
  bool number_integer(int64_t i) override { return add(Value::integer(i)); }
  bool number_unsigned(uint64_t u) override {
    return add(u <= INT64_MAX ? Value::integer(static_cast<int64_t>(u))
                              : Value::big_integer(std::to_string(u)));
  }
  bool number_float(double d, const std::string& digits) override {
    return add(digits.find_first_of(".eE") == std::string::npos ? Value::big_integer(digits)
                                                                : Value::number(d));
  }
  bool string(std::string& s) override { return add(Value::string(s)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool key(std::string& k) override {
    stack_.back().keys.push_back(Value::string(k));
    return true;
  }
  bool end_object() override {
    Level level = close();
    Members members;
    for (size_t i = 0; i < level.items.size(); ++i)
      members.emplace_back(std::move(level.keys[i]), std::move(level.items[i]));
    return add(Value::dict(std::move(members)));
  }
  bool end_array() override { return add(Value::list(close().items)); }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    fail_runtime(e.what());
  }

 private:
  struct Level {
    Items keys, items;
  };
  bool open() {
    stack_.emplace_back();
    return true;
  }
  Level close() {
    Level level = std::move(stack_.back());
    stack_.pop_back();
    return level;
  }
  bool add(Value v) {
    (stack_.empty() ? result : stack_.back().items.emplace_back()) = std::move(v);
    return true;
  }
  std::vector<Level> stack_;
};

}  // namespace

Value read_json_value(std::string_view text) {
  Builder builder;
  if (!nlohmann::json::sax_parse(text, &builder)) fail_runtime("not JSON");
  return builder.result;
}
