#include "base/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/log_output.h"
#include "base/log_text.h"
#include "bicached/error.h"

namespace bicached {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class LogTest : public testing::Test {
 protected:
  ~LogTest() override {
    log_setup("error", "text");
    std::remove(path.c_str());
    std::remove((path + ".1").c_str());
  }
  const std::string path = testing::TempDir() + "bicached_log_test_" + std::to_string(::getpid());
};

const std::string kEvil[] = {"a\"b",
                             "a\",\"level\":\"error\",\"x\":\"b",
                             "a\\",
                             "a\\u0041",
                             "a\nb",
                             "a\r\n2026-01-01 forged",
                             "\x1b[31mred",
                             "\x9b"
                             "31m",
                             "\xc2\x9b"
                             "31m",
                             "\xe2\x80\xa8line",
                             "\xe2\x80\xae"
                             "evil",
                             "\xef\xbb\xbf",
                             "\xff\xfe",
                             "\xed\xa0\x80",
                             "\xc0\xaf",
                             std::string("a\0b", 3),
                             "%v%l{}",
                             std::string(100000, '"'),
                             std::string(100000, '\n'),
                             "gr\xc3\xbc\xc3\x9f"};

TEST_F(LogTest, AJsonLineIsOneObjectWhateverTheMessage) {
  log_setup("info", "json", path);
  for (const std::string& message : kEvil) log_warn(message);
  std::istringstream lines(read_file(path));
  size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json.size(), 3u) << line;
    EXPECT_EQ(json.at("level"), "warning") << line;
    EXPECT_LE(line.size(), LogOutput::kMaxLineBytes);
  }
  EXPECT_EQ(count, std::size(kEvil));
  EXPECT_NE(read_file(path).find(R"(a\",\"level\":\"error\",\"x\":\"b)"), std::string::npos);
}

TEST_F(LogTest, ATextLineHasNoControlCharacters) {
  log_setup("info", "text", path);
  for (const std::string& message : kEvil) log_warn(message);
  std::istringstream lines(read_file(path));
  size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    EXPECT_EQ(visible_text(line), line);
    EXPECT_NE(line.find(" warning "), std::string::npos) << line;
  }
  EXPECT_EQ(count, std::size(kEvil));
  EXPECT_NE(read_file(path).find("gr\xc3\xbc\xc3\x9f"), std::string::npos);
}

TEST_F(LogTest, VisibleTextShowsWhatIsThere) {
  EXPECT_EQ(visible_text("a\x1b[2J"), "a\\x1b[2J");
  EXPECT_EQ(visible_text("\xe2\x80\xae"), "\\xe2\\x80\\xae");
  EXPECT_EQ(visible_text("\xe2\x82"), "\\xe2\\x82");
  EXPECT_EQ(visible_text("\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80");
  EXPECT_EQ(log_escape(std::string(10, 'a'), 4), "aaaa...");
}

TEST_F(LogTest, AFileThatWasRenamedIsOpenedAnew) {
  log_setup("info", "text", path);
  log_info("first");
  ASSERT_EQ(std::rename(path.c_str(), (path + ".1").c_str()), 0);
  log_info("second");
  log_reopen();
  log_info("third");
  EXPECT_NE(read_file(path + ".1").find("second"), std::string::npos);
  EXPECT_EQ(read_file(path).find("second"), std::string::npos);
  EXPECT_NE(read_file(path).find("third"), std::string::npos);
  EXPECT_THROW(log_setup("info", "text", "/no/such/folder/log"), Error);
}

TEST_F(LogTest, LinesThatNobodyReadsAreDroppedAndCounted) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int saved = ::dup(STDERR_FILENO);
  ::dup2(ends[1], STDERR_FILENO);
  log_setup("info", "text");
  for (int i = 0; i < 3000; ++i) log_info(std::string(100, 'a'));  // more than a pipe holds
  const int64_t dropped = num_dropped_log_lines();
  std::string text(1 << 20, '\0');
  ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
  std::string read;
  const auto drain = [&] {
    while (const ssize_t count = ::read(ends[0], text.data(), text.size())) {
      if (count < 0) break;
      read.append(text, 0, static_cast<size_t>(count));
    }
  };
  drain();
  log_info("somebody reads again");
  drain();
  ::dup2(saved, STDERR_FILENO);
  ::close(saved);
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT_GT(dropped, 100);
  EXPECT_NE(read.find(" " + std::to_string(dropped) + " log lines were dropped"),
            std::string::npos);
  EXPECT_NE(read.find("somebody reads again"), std::string::npos);
}

}  // namespace
}  // namespace bicached
