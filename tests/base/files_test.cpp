#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "base/state_file.h"

namespace bicached {
namespace {

std::string failure_of(const std::string& path) {
  try {
    read_text_file(path, 1000, ErrorCode::kInvalidModel);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class FilesTest : public testing::Test {
 protected:
  ~FilesTest() override {
    for (const char* end : {"", ".lock", ".new"}) ::unlink((path + end).c_str());
  }
  const std::string path = testing::TempDir() + "bicached_files_" + std::to_string(::getpid());
};

TEST_F(FilesTest, WhatIsNoFileIsRefusedByItsKind) {
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_NE(failure_of(path).find("a named pipe"), std::string::npos);
  EXPECT_NE(failure_of("/dev/zero").find("a device"), std::string::npos);
  EXPECT_NE(failure_of(testing::TempDir()).find("a folder"), std::string::npos);
  EXPECT_NE(failure_of("/no/such").find("No such file"), std::string::npos);
}

TEST_F(FilesTest, DownloadsThatWentWrongAreNamed) {
  std::ofstream(path) << "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
  EXPECT_NE(failure_of(path).find("Git LFS pointer"), std::string::npos);
  std::ofstream(path) << "<!DOCTYPE html><html>";
  EXPECT_NE(failure_of(path).find("web page"), std::string::npos);
}

TEST_F(FilesTest, NothingBehindANulIsLeftOut) {
  EXPECT_THROW(parse_json_text(std::string("{}\0x", 4), "it", ErrorCode::kInvalidRequest), Error);
  EXPECT_THROW(parse_json_text(std::string("{}\0", 3), "it", ErrorCode::kInvalidRequest), Error);
}

TEST_F(FilesTest, OneServerWritesAStateFile) {
  StateFile first(path);
  EXPECT_TRUE(first.lock());
  {
    StateFile second(path);
    EXPECT_FALSE(second.lock());
  }
  {
    StateFile third(path);
    EXPECT_FALSE(third.lock());  // the second's end frees nothing of the first's
  }
}

TEST_F(FilesTest, ALockEndsWithItsServer) {
  {
    EXPECT_TRUE(StateFile(path).lock());
  }
  StateFile next(path);
  EXPECT_TRUE(next.lock());
}

/// A pipe that nobody reads would keep the writer, and with it the end of a server, for ever.
TEST_F(FilesTest, AStateFileIsWrittenWhateverHasTheNameOfItsNewOne) {
  const std::string fresh = path + ".new";
  ASSERT_EQ(::mkfifo(fresh.c_str(), 0600), 0);
  EXPECT_TRUE(StateFile(path).write("one"));
  EXPECT_EQ(StateFile(path).read(), "one");
  const std::string other = path + ".lock";
  std::ofstream(other) << "another file";
  ASSERT_EQ(::symlink(other.c_str(), fresh.c_str()), 0);
  EXPECT_TRUE(StateFile(path).write("two"));
  EXPECT_EQ(StateFile(path).read(), "two");
  EXPECT_EQ(read_text_file(other, 1000, ErrorCode::kInternal), "another file");
}

/// What a client may send: in a time that grows with the square of its length it would take a
/// quarter of an hour.
TEST(JsonText, ManyObjectsAreParsedAsFastAsTheirTextIsLong) {
  for (const char* item : {"{}", "[]", R"({"a":{}})", R"([{}])"}) {
    std::string text = "[";
    while (text.size() < size_t{4} << 20) text += std::string(item) + ",";
    text.back() = ']';
    const nlohmann::json parsed =
        parse_json_text(text, "a text", ErrorCode::kInvalidRequest, {text.size(), 4});
    EXPECT_EQ(parsed.size(), text.size() / (std::string(item).size() + 1)) << item;
  }
  std::string members = "{";
  for (int i = 0; i < 300000; ++i) members += "\"" + std::to_string(i) + "\":{},";
  members.back() = '}';
  EXPECT_EQ(
      parse_json_text(members, "a text", ErrorCode::kInvalidRequest, {members.size(), 4}).size(),
      300000u);
}

TEST(JsonText, SaysWhatIsWrongInWordsOfItsReader) {
  const auto error_of = [](const char* text) {
    try {
      parse_json_text(text, "a text", ErrorCode::kInvalidRequest);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  for (const char* nothing : {"", " \n"}) {
    EXPECT_EQ(error_of(nothing), "a text: not valid JSON: there is nothing in it");
  }
  EXPECT_TRUE(error_of("{\n").starts_with("a text: not valid JSON: parse error at line 2, column"))
      << error_of("{\n");
}

}  // namespace
}  // namespace bicached
