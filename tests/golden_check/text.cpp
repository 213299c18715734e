// Tokenizers and chat templates against what the Hugging Face libraries answer.
#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <functional>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "bicached/error.h"
#include "bicached/tokenizer.h"
#include "golden_check/golden_case.h"
#include "golden_check/report.h"
#include "jinja/read_json.h"
#include "text/chat_render.h"

namespace {

namespace fs = std::filesystem;
namespace jinja = bicached::jinja;
using bicached::TokenId;
using bicached::Tokenizer;
using json = nlohmann::json;
using Ids = std::vector<TokenId>;

std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("can't open " + path.string());
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

std::vector<json> rows_of(const fs::path& path) {
  std::vector<json> rows;
  for (const std::string& line : lines_of(path)) rows.push_back(json::parse(line));
  return rows;
}

/// The first place where two answers differ, short enough for a line.
std::string difference(const Ids& got, const Ids& want) {
  const size_t n = std::min(got.size(), want.size());
  size_t i = 0;
  while (i < n && got[i] == want[i]) ++i;
  const auto at = [&](const Ids& ids) {
    return i < ids.size() ? std::to_string(ids[i]) : "the end";
  };
  return "at id " + std::to_string(i) + " got " + at(got) + ", expected " + at(want);
}

std::string quoted(const std::string& s) {
  return json(s.substr(0, 200)).dump(-1, ' ', true, json::error_handler_t::replace);
}

std::string difference(const std::string& got, const std::string& want) {
  size_t i = 0;
  while (i < std::min(got.size(), want.size()) && got[i] == want[i]) ++i;
  const size_t from = i > 20 ? i - 20 : 0;
  return "at byte " + std::to_string(i) + " got " + quoted(got.substr(from)) + ", expected " +
         quoted(want.substr(from));
}

/// Collects what is wrong with one case.
class Case {
 public:
  template <class T>
  void same(const char* what, const T& got, const T& want) {
    if (got != want) add(std::string(what) + " " + difference(got, want));
  }
  void add(const std::string& why) { wrong_ += (wrong_.empty() ? "" : "; ") + why; }
  const std::string& wrong() const { return wrong_; }

 private:
  std::string wrong_;
};

bool has_flag(const json& row, const std::string& flag) {
  if (!row.contains("flags")) return false;
  return std::find(row["flags"].begin(), row["flags"].end(), flag) != row["flags"].end();
}

/// A row whose flag names a difference of Unicode tables may differ, and says so; no other may.
void conclude(Report& report, const std::string& name, const json& row, const Case& result) {
  if (!result.wrong().empty() && has_flag(row, "unicode15+")) {
    report.quirk(name, false,
                 "characters newer than the regex library's Unicode tables; " + result.wrong());
  } else if (result.wrong().empty()) {
    report.pass(name);
  } else {
    report.fail(name, result.wrong());
  }
}

/// Runs one check and turns exceptions into failures.
void guarded(Case& result, const std::function<void()>& check) {
  try {
    check();
  } catch (const std::exception& e) {
    result.add(std::string("threw: ") + e.what());
  }
}

const json& or_else(const json& row, const char* name, const json& otherwise) {
  return row.contains(name) && !row[name].is_null() ? row[name] : otherwise;
}

void check_case(const Tokenizer& tokenizer, const json& row, bool slow, Case& result) {
  const std::string text = row["text"];
  const json& ids = row["ids_with_special"];
  const json& plain = or_else(row, "ids_plain", ids);
  const auto accept = [&](const char* what, const Ids& got, const json& want, const char* other) {
    if (row.contains(other) && slow && got == row[other].get<Ids>()) return;
    result.same(what, got, want.get<Ids>());
  };
  const Ids encoded = tokenizer.encode(text, true);
  accept("ids_with_special", encoded, ids, "slow_ids_with_special");
  result.same("ids_plain", tokenizer.encode(text, false), plain.get<Ids>());
  accept("ids_no_added", tokenizer.encode({{text, false}}), or_else(row, "ids_no_added", plain),
         "slow_ids_no_added");
  result.same("ids_post", tokenizer.add_special(encoded), or_else(row, "ids_post", ids).get<Ids>());
  const json& keep = or_else(row["decode"], "keep_special", row["text"]);
  result.same("decode keep_special", tokenizer.decode(ids.get<Ids>(), false),
              keep.get<std::string>());
  result.same("decode skip_special", tokenizer.decode(ids.get<Ids>(), true),
              or_else(row["decode"], "skip_special", keep).get<std::string>());
}

void check_cases(const fs::path& file, const Tokenizer& tokenizer, const std::string& prefix,
                 bool slow, Report& report) {
  for (const json& row : rows_of(file)) {
    Case result;
    guarded(result, [&] { check_case(tokenizer, row, slow, result); });
    conclude(report, prefix + row["id"].get<std::string>() + " " + row["tag"].get<std::string>(),
             row, result);
  }
}

void check_decode(const fs::path& file, const Tokenizer& tokenizer, const std::string& prefix,
                  Report& report) {
  for (const json& row : rows_of(file)) {
    Case result;
    guarded(result, [&] {
      const Ids ids = row["ids"];
      result.same("keep_special", tokenizer.decode(ids, false),
                  row["keep_special"].get<std::string>());
      result.same("skip_special", tokenizer.decode(ids, true),
                  row["skip_special"].get<std::string>());
    });
    conclude(report, prefix + row["id"].get<std::string>(), row, result);
  }
}

void check_streaming(const fs::path& file, const Tokenizer& tokenizer, const std::string& prefix,
                     Report& report) {
  for (const json& row : rows_of(file)) {
    Case result;
    guarded(result, [&] {
      bicached::Detokenizer detokenizer(tokenizer, row["skip_special"]);
      const Ids ids = row["ids"];
      std::string got, most;  // a detokenizer may be behind, never ahead
      for (size_t i = 0; i < ids.size(); ++i) {
        got += detokenizer.push(ids[i]);
        most += row["deltas"].at(i).get<std::string>();
        if (!most.starts_with(got))
          result.add("after id " + std::to_string(i) +
                     " more than may be released: " + difference(got, most));
      }
      got += detokenizer.flush();
      result.same("the whole text", got, most + row["flush"].get<std::string>());
    });
    conclude(report, prefix + row["id"].get<std::string>(), row, result);
  }
}

bool contains_ignoring_case(std::string text, std::string part) {
  const auto lower = [](std::string& s) {
    std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return std::tolower(c); });
  };
  lower(text), lower(part);
  return text.find(part) != std::string::npos;
}

/// "A or B": one of them is enough.
bool names_one_of(const std::string& message, std::string alternatives) {
  for (size_t cut; (cut = alternatives.find(" or ")) != std::string::npos;
       alternatives = alternatives.substr(cut + 4)) {
    if (contains_ignoring_case(message, alternatives.substr(0, cut))) return true;
  }
  return contains_ignoring_case(message, alternatives);
}

void check_refusals(const fs::path& folder, Report& report) {
  for (const json& row : read_json(folder / "refuse.json")) {
    const std::string dir = row["dir"];
    const std::string name = row["message_should_name"];
    try {
      Tokenizer::load((folder / dir).string());
      report.fail(dir, "was loaded, though " + row["reason"].get<std::string>());
    } catch (const bicached::Error& e) {
      // The folder's own name must not pass for the named thing.
      std::string message = e.what();
      const std::string path = (folder / dir).string();
      for (size_t at; (at = message.find(path)) != std::string::npos;)
        message.erase(at, path.size());
      if (e.code() != bicached::ErrorCode::kInvalidModel) {
        report.fail(dir, "refused, but not as an invalid model");
      } else if (!names_one_of(message, name)) {
        report.fail(dir, "the message does not name " + name + ": " + e.what());
      } else {
        report.pass(dir);
      }
    } catch (const std::exception& e) {
      report.fail(dir, std::string("threw something else than Error: ") + e.what());
    }
  }
}

uint32_t crc32_of(const Ids& ids) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const TokenId id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      crc ^= (static_cast<uint32_t>(id) >> shift) & 0xFF;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320u : 0);
    }
  }
  return ~crc;
}

void check_long_text(const fs::path& folder, const std::string& name, const Tokenizer& tokenizer,
                     const std::string& prefix, Report& report) {
  const json all = read_json(folder / "long_text.json");
  if (!all.contains(name)) return;
  const json& want = all[name];
  std::string once, text;
  for (const json& row : rows_of(folder / "cases" / (name + ".jsonl"))) {
    const std::string tag = row["tag"];
    if (tag != "doc" && tag != "code" && !tag.starts_with("script-")) continue;
    if (!once.empty()) once += '\n';
    once += row["text"].get<std::string>();
  }
  for (int i = 0; i < want["copies"].get<int>(); ++i) text += once;
  Case result;
  guarded(result, [&] {
    if (text.size() != want["bytes"].get<size_t>())
      result.add("the text has " + std::to_string(text.size()) + " bytes");
    const Ids ids = tokenizer.encode(text, true);
    if (ids.size() != want["ids"].get<size_t>())
      result.add("got " + std::to_string(ids.size()) + " ids, expected " + want["ids"].dump());
    std::ostringstream crc;
    crc << std::hex << std::setw(8) << std::setfill('0') << crc32_of(ids);
    result.same("crc32", crc.str(), want["crc32"].get<std::string>());
  });
  conclude(report, prefix + "long_text " + name, json::object(), result);
}

void check_tokenizer(const fs::path& folder, const fs::path& files, Report& report) {
  const std::string name = files.filename().string();
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::load(files.string());
  } catch (const std::exception& e) {
    report.fail("tokenizers/" + name, e.what());
    return;
  }
  // The vocab.json form of a tokenizer is checked by the cases of its tokenizer.json form.
  const bool slow = !fs::exists(files / "tokenizer.json");
  const std::string cases =
      slow && name.ends_with("-slow") ? name.substr(0, name.size() - 5) : name;
  const std::string prefix = slow ? name + " " : "";
  const auto file = [&](const char* kind) { return folder / kind / (cases + ".jsonl"); };
  if (fs::exists(file("cases")))
    check_cases(file("cases"), *tokenizer, "case " + prefix, slow, report);
  if (fs::exists(file("decode")))
    check_decode(file("decode"), *tokenizer, "decode " + prefix, report);
  if (fs::exists(file("streaming")))
    check_streaming(file("streaming"), *tokenizer, "streaming " + prefix, report);
  if (fs::exists(folder / "long_text.json"))
    check_long_text(folder, cases, *tokenizer, prefix, report);
}

// --- chat ---

jinja::Value member_of(const jinja::Value& row, const char* name) {
  const jinja::Value* found = row.member(std::string_view(name));
  return found ? *found : jinja::Value();
}

bool is_absent(const jinja::Value& v) {
  return v.is(jinja::Kind::kNone) || v.is(jinja::Kind::kUndefined);
}

bicached::ChatInput chat_input(const jinja::Value& row) {
  bicached::ChatInput input;
  input.messages = member_of(row, "messages");
  input.add_generation_prompt = jinja::truthy(member_of(row, "add_generation_prompt"));
  for (const auto& [name, slot] :
       {std::pair{"bos_token", &input.bos_token}, {"eos_token", &input.eos_token}}) {
    const jinja::Value v = member_of(row, name);
    if (!is_absent(v)) *slot = v;
  }
  const jinja::Value tools = member_of(row, "tools"), extra = member_of(row, "extra");
  if (!is_absent(tools)) input.tools = tools;
  if (!is_absent(extra)) input.extra = extra.members();
  return input;
}

jinja::RenderOptions options_of(const jinja::Value& row) {
  jinja::RenderOptions options;
  const jinja::Value now = member_of(row, "now");
  if (is_absent(now)) return options;
  std::tm time{};
  std::istringstream(now.text()) >> std::get_time(&time, "%Y-%m-%dT%H:%M:%S");
  time.tm_isdst = -1;
  std::mktime(&time);  // fills in the day of the week and of the year
  options.now = time;
  return options;
}

void check_render_row(const jinja::Value& row, const std::string& source, Case& result) {
  const std::string tier = member_of(row, "tier").text();
  const jinja::Value error = member_of(row, "error");
  try {
    const std::string got =
        bicached::render_chat(jinja::Template(source), chat_input(row), options_of(row));
    if (!is_absent(error)) {
      result.add("rendered " + quoted(got) +
                 ", though it must fail: " + member_of(error, "message").text());
    } else {
      result.same("text", got, member_of(row, "expected").text());
    }
  } catch (const jinja::TemplateError& e) {
    const bool may_refuse = tier == "engine" && e.failure() == jinja::Failure::kUnsupported;
    if (is_absent(error)) {
      if (!may_refuse) result.add(std::string("failed: ") + e.what());
    } else if (member_of(error, "type").text() == "TemplateError") {
      if (e.failure() != jinja::Failure::kRaised) result.add("not raised by the template");
      result.same("message", std::string(e.what()), member_of(error, "message").text());
    }
  }
}

void check_render(const fs::path& folder, Report& report) {
  const json templates = read_json(folder / "chat/templates.json");
  for (const std::string& line : lines_of(folder / "chat/render.jsonl")) {
    const jinja::Value row = read_json_value(line);
    const std::string source = templates.at(member_of(row, "template").text())["template"];
    Case result;
    guarded(result, [&] { check_render_row(row, source, result); });
    conclude(report,
             "render " + member_of(row, "id").text() + " " + member_of(row, "template").text() +
                 " " + member_of(row, "conversation").text(),
             json::object(), result);
  }
}

void check_chat_ids(const fs::path& folder, Report& report) {
  const json templates = read_json(folder / "chat/templates.json");
  std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers;
  for (const std::string& line : lines_of(folder / "chat/chat_ids.jsonl")) {
    const json row = json::parse(line);
    const std::string name = row["tokenizer"];
    if (!tokenizers[name])
      tokenizers[name] = Tokenizer::load((folder / "tokenizers" / name).string());
    const Tokenizer& tokenizer = *tokenizers[name];
    const std::string source = templates.at(row["template"].get<std::string>())["template"];
    Case result;
    guarded(result, [&] {
      jinja::Value values = read_json_value(line);
      bicached::ChatInput input = chat_input(values);
      input.add_generation_prompt = true;
      const jinja::Template compiled(source);
      const std::string text = bicached::render_chat(compiled, input);
      result.same("rendered", text, row["rendered"].get<std::string>());
      result.same("ids_naive", tokenizer.encode(text, true), row["ids_naive"].get<Ids>());
      const auto pieces = bicached::render_chat_pieces(
          compiled, input, bicached::texts_to_disarm(tokenizer.added_token_texts(), source));
      result.same("ids_sanitized", tokenizer.encode(pieces), row["ids_sanitized"].get<Ids>());
    });
    conclude(report,
             "chat_ids " + name + " " + row["template"].get<std::string>() + " " +
                 row["conversation"].get<std::string>(),
             row, result);
  }
}

}  // namespace

void check_text(const fs::path& folder, Report& report) {
  if (fs::exists(folder / "tokenizers")) {
    std::set<fs::path> folders;
    for (const auto& entry : fs::directory_iterator(folder / "tokenizers"))
      folders.insert(entry.path());
    for (const fs::path& files : folders) check_tokenizer(folder, files, report);
  }
  if (fs::exists(folder / "refuse.json")) check_refusals(folder, report);
  if (fs::exists(folder / "chat/render.jsonl")) check_render(folder, report);
  if (fs::exists(folder / "chat/chat_ids.jsonl")) check_chat_ids(folder, report);
}
