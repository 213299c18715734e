#include "bicached/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "bicached/error.h"
#include "text/regex_split.h"

namespace bicached {
namespace {

const std::string kDemo = BICACHED_SOURCE_DIR "/models/demo";

const Tokenizer& demo() {
  static const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::load(kDemo);
  return *tokenizer;
}

ErrorCode code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.code();
  }
  return ErrorCode::kInternal;
}

TEST(Tokenizer, DecodesWhatItEncoded) {
  for (const std::string text : {"Hello, world!", "  a\n\nb\t c ", "Grüße 你好 😀 e\xCC\x81", ""}) {
    EXPECT_EQ(demo().decode(demo().encode(text, false), false), text);
  }
}

TEST(Tokenizer, SpecialTokensAreFoundInTrustedTextOnly) {
  const std::string text = "a<|eot_id|>b";
  const bool skip_special = true;
  ASSERT_EQ(demo().encode("<|eot_id|>", true).size(), 1u);
  EXPECT_EQ(demo().decode(demo().encode(text, true), skip_special), "ab");
  EXPECT_EQ(demo().decode(demo().encode(text, false), skip_special), text);
  EXPECT_EQ(demo().decode(demo().encode({{text, false}}), skip_special), text);
}

TEST(Tokenizer, RefusesInvalidUtf8) {
  for (const std::string text : {"\x80", "a\xC3", "\xED\xA0\x80", "\xC0\xAF", "\xF4\x90\x80\x80"}) {
    EXPECT_EQ(code_of([&] { demo().encode(text, true); }), ErrorCode::kInvalidRequest);
    EXPECT_EQ(code_of([&] { demo().encode({{text, false}}); }), ErrorCode::kInvalidRequest);
  }
}

TEST(Tokenizer, UnknownIdsAreNothing) {
  EXPECT_EQ(demo().decode({-1, 1 << 30}, false), "");
  EXPECT_EQ(demo().token_text(-5), "");
}

TEST(Tokenizer, RefusesAFolderWithoutOne) {
  EXPECT_EQ(code_of([] { Tokenizer::load("/nonexistent"); }), ErrorCode::kInvalidModel);
}

TEST(Tokenizer, RefusesBrokenJson) {
  const auto folder = std::filesystem::temp_directory_path() / "bicached_text_test";
  std::filesystem::create_directories(folder);
  for (const std::string& text : {std::string("{"), std::string(100000, '['),
                                  std::string("{\"model\":{}}"), std::string("\xFF")}) {
    std::ofstream(folder / "tokenizer.json") << text;
    EXPECT_EQ(code_of([&] { Tokenizer::load(folder.string()); }), ErrorCode::kInvalidModel);
  }
  std::filesystem::remove_all(folder);
}

TEST(Detokenizer, StreamsWhatDecodeGives) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<TokenId> ids;
    for (int i = 0; i < 40; ++i)
      ids.push_back(static_cast<TokenId>(random() % 300));  // mostly single bytes
    for (const bool skip : {false, true}) {
      Detokenizer detokenizer(demo(), skip);
      std::string text;
      for (const TokenId id : ids) text += detokenizer.push(id);
      text += detokenizer.flush();
      EXPECT_EQ(text, demo().decode(ids, skip));
    }
  }
}

/// Of this thread's processor time: what else the machine does is left out.
double seconds_to_encode(const std::string& text) {
  const auto now = [] {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  const double start = now();
  demo().encode(text, true);
  return now() - start;
}

std::string repeated(const std::string& unit, size_t num_bytes) {
  std::string out;
  while (out.size() < num_bytes) out += unit;
  return out;
}

std::vector<size_t> piece_lengths(const std::string& pattern, const std::string& text) {
  std::vector<std::string_view> pieces;
  RegexSplit(pattern).split(text, pieces);
  std::vector<size_t> lengths;
  for (const std::string_view piece : pieces) lengths.push_back(piece.size());
  return lengths;
}

TEST(RegexSplit, PiecesOfAnyLengthAreThoseOfTheWholeText) {
  const std::string spaces(1000, ' '), letters(700, 'x');
  const std::string text = spaces + letters + "\n" + spaces + "\n" + letters + spaces;
  // All but the last of the spaces before a word, as the tokenizers of Qwen and Llama have it.
  EXPECT_EQ(piece_lengths(R"(\s*[\r\n]+|\s+(?!\S)| ?\S+|\s+)", text),
            (std::vector<size_t>{999, 701, 1002, 700, 1000}));
  EXPECT_EQ(piece_lengths("x+$", letters + "\n" + letters), (std::vector<size_t>{700, 1, 700}));
  EXPECT_EQ(piece_lengths("(?<=x)\\n", letters + "\n" + letters),
            (std::vector<size_t>{700, 1, 700}));
  std::string accents;  // two bytes each: no window ends inside one
  for (int i = 0; i < 1001; ++i) accents += "\xC3\xA9";
  EXPECT_EQ(piece_lengths("\\p{L}+", accents + " " + accents),
            (std::vector<size_t>{2002, 1, 2002}));
}

TEST(RegexSplit, APatternThatLooksToTheEndAtEveryCharacterIsRefusedOnALongText) {
  const std::string text(400'000, 'a');
  for (const char* pattern : {"a*b|a", "(?=a*b)|a", "(?=a*$)a"}) {
    EXPECT_EQ(code_of([&] { piece_lengths(pattern, text); }), ErrorCode::kInvalidRequest)
        << pattern;
  }
  EXPECT_EQ(piece_lengths("a*b|a", "aaab"), std::vector<size_t>{4});
}

/// Each pattern is compiled, and 2,000 long ones took 1.8 GB.
TEST(Tokenizer, MorePatternsThanATokenizerHasAreRefused) {
  const std::string folder = ::testing::TempDir() + "bicached_patterns_" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  nlohmann::json file = nlohmann::json::parse(std::ifstream(kDemo + "/tokenizer.json"));
  const nlohmann::json split = {{"type", "Split"},
                                {"pattern", {{"Regex", "a|b"}}},
                                {"behavior", "Isolated"},
                                {"invert", false}};
  const auto load_with = [&](size_t num_splits) {
    nlohmann::json parts = nlohmann::json::array();
    for (size_t i = 0; i < num_splits; ++i) parts.push_back(split);
    parts.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
    file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", parts}};
    std::ofstream(folder + "/tokenizer.json") << file;
    Tokenizer::load(folder);
  };
  load_with(16);
  EXPECT_EQ(code_of([&] { load_with(17); }), ErrorCode::kInvalidModel);
  std::filesystem::remove_all(folder);
}

/// Quadratic work would take minutes here; the bound leaves room for a busy machine.
TEST(Tokenizer, HostileTextCostsTimeInItsLengthOnly) {
  for (const std::string unit : {"a", " ", "\n", " \n", "1", "!", "'", "\t", "a\xCC\x81\xCC\xA3",
                                 "<|eot_id", "<|eot_id|>", "\xE2\x80\x83"}) {
    const double half = std::max(seconds_to_encode(repeated(unit, 500'000)), 0.02);
    EXPECT_LT(seconds_to_encode(repeated(unit, 1'000'000)), 4 * half) << unit;
  }
  EXPECT_LT(seconds_to_encode("x" + std::string(2'000'000, ' ') + "x"), 10);
}

}  // namespace
}  // namespace bicached
