#include "http/choice.h"

#include <gtest/gtest.h>

#include "http/fake_text.h"

namespace bicached {
namespace {

GenerationUpdate update_of(const std::string& text, FinishReason finish = FinishReason::kNone) {
  GenerationUpdate update;
  for (char c : text) {
    DecidedToken token;
    token.token = static_cast<unsigned char>(c);
    update.tokens.push_back(token);
  }
  update.finish = finish;
  return update;
}

TEST(StopScannerTest, HoldsBackWhatMayBecomeAStopString) {
  StopScanner scanner({"END"});
  EXPECT_EQ(scanner.push("abE"), "ab");
  EXPECT_EQ(scanner.push("N"), "");
  EXPECT_EQ(scanner.push("x"), "ENx");
  EXPECT_EQ(scanner.push("EEN"), "E");
  EXPECT_EQ(scanner.push("Dmore"), "");
  EXPECT_TRUE(scanner.stopped());
  EXPECT_EQ(scanner.push("even more"), "");
  EXPECT_EQ(scanner.flush(), "");
}

TEST(StopScannerTest, GivesTheRestAtTheEnd) {
  StopScanner scanner({"END"});
  EXPECT_EQ(scanner.push("abEN"), "ab");
  EXPECT_EQ(scanner.flush(), "EN");
  EXPECT_FALSE(scanner.stopped());
}

TEST(StopScannerTest, TheTextDoesNotDependOnThePieces) {
  const std::string text = "xxabababcxx";
  for (const std::vector<std::string>& stops : std::vector<std::vector<std::string>>{
           {"ababc"}, {"abc", "babc"}, {"c", "zz", "bab"}, {"nothing"}, {"xxx", "abac"}}) {
    StopScanner whole(stops);
    std::string expected = whole.push(text);
    expected += whole.flush();
    for (size_t piece = 1; piece < text.size(); ++piece) {
      StopScanner scanner(stops);
      std::string released;
      for (size_t at = 0; at < text.size(); at += piece) {
        released += scanner.push(text.substr(at, piece));
      }
      released += scanner.flush();
      EXPECT_EQ(released, expected) << stops[0] << " in pieces of " << piece;
      EXPECT_EQ(scanner.stopped(), whole.stopped());
    }
  }
}

TEST(StopScannerTest, NoStopStringEndsInWhatDoesNotCount) {
  for (const size_t piece : {1u, 2u, 3u, 5u, 20u}) {
    for (size_t uncounted = 0; uncounted <= 8; ++uncounted) {
      const std::string text = "abEND-cdENDef";  // ends at 5 and 11
      StopScanner scanner({"END"});
      std::string released;
      for (size_t at = 0; at < text.size();) {
        const size_t until = at < uncounted ? std::min(at + piece, uncounted) : at + piece;
        released += scanner.push(text.substr(at, until - at), at >= uncounted);
        at = until;
      }
      released += scanner.flush();
      EXPECT_EQ(released, uncounted < 5 ? "ab" : "abEND-cd") << piece << " " << uncounted;
      EXPECT_TRUE(scanner.stopped());
    }
  }
}

TEST(ChoiceTest, StopStringsWaitForTheLeastNumberOfTokens) {
  const FakeTokenizer tokenizer;
  for (const int min_tokens : {0, 1, 2, 3, 4}) {
    GenerateRequest request;
    request.decode.min_tokens = min_tokens;
    Choice whole(tokenizer, {"b"}, request), pieces(tokenizer, {"b"}, request);
    std::string text = whole.accept(update_of("abcb", FinishReason::kLength)).text, parts;
    for (const char c : std::string("abcb")) parts += pieces.accept(update_of({c})).text;
    parts += pieces.accept(update_of("", FinishReason::kLength)).text;
    EXPECT_EQ(text, min_tokens < 2 ? "a" : min_tokens < 4 ? "abc" : "abcb") << min_tokens;
    EXPECT_EQ(parts, text) << min_tokens;
  }
}

TEST(ChoiceTest, TheTokenThatEndedTheTextIsNoText) {
  const FakeTokenizer tokenizer;
  Choice choice(tokenizer, {"cd"});
  GenerationUpdate update = update_of("abc", FinishReason::kStop);
  update.tokens.emplace_back();
  update.tokens.back().token = 256;
  update.tokens.back().is_end = true;
  const ChoiceDelta delta = choice.accept(update);
  EXPECT_EQ(delta.text, "abc");
  ASSERT_EQ(delta.tokens.size(), 4u);
  EXPECT_EQ(delta.tokens.back().token.token, 256);
  EXPECT_EQ(delta.tokens.back().text_begin, 3u);
  EXPECT_EQ(choice.completion_tokens(), 3);
}

TEST(ChoiceTest, CutsTextAndTokensBeforeTheStopString) {
  const FakeTokenizer tokenizer;
  Choice choice(tokenizer, {"cd"});
  ChoiceDelta delta = choice.accept(update_of("abc"));
  EXPECT_EQ(delta.text, "ab");
  EXPECT_EQ(delta.tokens.size(), 2u);
  delta = choice.accept(update_of("de"));
  EXPECT_EQ(delta.text, "");
  EXPECT_TRUE(delta.tokens.empty());
  EXPECT_EQ(choice.finish(), FinishReason::kStop);
  EXPECT_TRUE(choice.stopped_early());
  EXPECT_EQ(choice.completion_tokens(), 4);
  EXPECT_EQ(choice.accept(update_of("more", FinishReason::kLength)).text, "");
}

TEST(ChoiceTest, ReleasesOnlyWholeCharacters) {
  const FakeTokenizer tokenizer;
  Choice choice(tokenizer, {});
  EXPECT_EQ(choice.accept(update_of("\xe2\x82")).text, "");
  const ChoiceDelta delta = choice.accept(update_of("\xac!"));
  EXPECT_EQ(delta.text, "\xe2\x82\xac!");
  EXPECT_EQ(delta.tokens.size(), 4u);
}

TEST(ChoiceTest, GivesWhatWasHeldBackAtTheEnd) {
  const FakeTokenizer tokenizer;
  Choice choice(tokenizer, {"stop"});
  EXPECT_EQ(choice.accept(update_of("last")).text, "la");
  const ChoiceDelta delta = choice.accept(update_of("", FinishReason::kLength));
  EXPECT_EQ(delta.text, "st");
  EXPECT_EQ(delta.tokens.size(), 2u);
  EXPECT_EQ(choice.finish(), FinishReason::kLength);
  EXPECT_FALSE(choice.stopped_early());
}

TEST(ChoiceTest, EveryTokenIsReleasedOnce) {
  const FakeTokenizer tokenizer;
  const std::string text = "a\xe2\x82\xac b\xff c stop-not";
  for (size_t piece = 1; piece < 9; ++piece) {
    Choice choice(tokenizer, {"stopped"});
    size_t num_tokens = 0;
    std::string released;
    for (size_t at = 0; at < text.size(); at += piece) {
      const bool last = at + piece >= text.size();
      const ChoiceDelta delta = choice.accept(
          update_of(text.substr(at, piece), last ? FinishReason::kStop : FinishReason::kNone));
      EXPECT_EQ(delta.text_begin, released.size());
      num_tokens += delta.tokens.size();
      released += delta.text;
    }
    EXPECT_EQ(num_tokens, text.size());
    EXPECT_EQ(released, "a\xe2\x82\xac b\xef\xbf\xbd c stop-not");
  }
}

}  // namespace
}  // namespace bicached
