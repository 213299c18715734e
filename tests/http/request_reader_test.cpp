#include "http/request_reader.h"

#include <gtest/gtest.h>

#include "http/errors.h"

namespace bicached {
namespace {

using Phase = RequestReader::Phase;

class RequestReaderTest : public testing::Test {
 protected:
  static std::string post(const std::string& headers, const std::string& body) {
    return "POST /tokenize HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" + body;
  }
  static std::string chunked(const std::string& body) {
    return post("Transfer-Encoding: chunked\r\n", body);
  }
  /// Reads all at once and byte by byte, which must come to the same.
  ArrivedRequest read(const std::string& bytes) {
    RequestReader whole(kMaxBody, check), slow(kMaxBody, check);
    whole.read(bytes);
    std::string waiting;
    for (const char c : bytes) {
      waiting += c;
      waiting.erase(0, slow.read(waiting));
      if (slow.phase() == Phase::kArrived) break;
    }
    EXPECT_EQ(whole.phase(), Phase::kArrived) << bytes;
    EXPECT_EQ(slow.phase(), Phase::kArrived) << bytes;
    ArrivedRequest one = whole.take(), other = slow.take();
    EXPECT_EQ(one.body, other.body) << bytes;
    EXPECT_EQ(status_of(one), status_of(other)) << bytes;
    return one;
  }
  static int status_of(const ArrivedRequest& request) {
    if (!request.refusal) return 200;
    return request.refusal->status != 0 ? request.refusal->status
                                        : describe_error(request.refusal->error.code()).status;
  }

  static constexpr int64_t kMaxBody = 100;
  RequestReader::CheckHead check = [](ArrivedRequest&) {};
};

TEST_F(RequestReaderTest, BodiesComeWholeInAnyPieces) {
  EXPECT_EQ(read(post("Content-Length: 5\r\n", "hello")).body, "hello");
  EXPECT_EQ(read(post("Content-Length: 0\r\n", "")).body, "");
  EXPECT_EQ(read(chunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")).body, "hello!");
  EXPECT_EQ(read(chunked("A;name=\"v\"\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n")).body,
            "0123456789");
  EXPECT_EQ(read(chunked("0a \r\n0123456789\r\n0\r\n\r\n")).body, "0123456789");
}

TEST_F(RequestReaderTest, ChunksThatTwoProgramsCouldReadDifferentlyAreRefused) {
  for (const char* body :
       {"0x5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n", "\r\nhello", "zz\r\n", "5 5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n", "5\r\nhello0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n", "5\rhello\r\n", "0_5\r\nhello\r\n0\r\n\r\n"}) {
    EXPECT_EQ(status_of(read(chunked(body))), 400) << body;
  }
  EXPECT_EQ(status_of(read(chunked("65\r\n"))), 413);
  EXPECT_EQ(status_of(read(chunked("ffffffffffffffff\r\n"))), 413);
  EXPECT_EQ(status_of(read(chunked("3c\r\n" + std::string(60, 'a') + "\r\n3c\r\n"))), 413);
}

TEST_F(RequestReaderTest, EndlessExtensionsAndTrailersAreRefused) {
  EXPECT_EQ(status_of(read(chunked("1;" + std::string(10000, 'a')))), 400);
  std::string trailers = "0\r\n";
  for (int i = 0; i < 1000; ++i) trailers += "X: " + std::string(100, 'a') + "\r\n";
  EXPECT_EQ(status_of(read(chunked(trailers))), 400);
  std::string extensions;
  for (int i = 0; i < 90; ++i) extensions += "1;" + std::string(1000, 'b') + "\r\na\r\n";
  EXPECT_EQ(status_of(read(chunked(extensions))), 400);
}

TEST_F(RequestReaderTest, EmptyLinesBeforeARequestAreNone) {
  RequestReader reader(kMaxBody, check);
  const std::string bytes = "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\nGET /next";
  EXPECT_EQ(reader.read("\r\n"), 2u);
  EXPECT_EQ(reader.phase(), Phase::kIdle);
  EXPECT_EQ(reader.read("\r"), 0u);
  EXPECT_EQ(reader.read(bytes), bytes.size() - 9);
  EXPECT_EQ(reader.phase(), Phase::kArrived);
  EXPECT_EQ(reader.take().head.target, "/");
}

TEST_F(RequestReaderTest, WhatIsNoHttpIsRefusedAtItsFirstByte) {
  EXPECT_EQ(status_of(read(std::string("\x16\x03\x01", 3))), 400);
  EXPECT_EQ(status_of(read("{\"prompt\"")), 400);
}

TEST_F(RequestReaderTest, WhatItsHeadRefusesWaitsForNoBody) {
  check = [](ArrivedRequest&) { throw Error(ErrorCode::kInvalidApiKey, "no key"); };
  EXPECT_EQ(status_of(read(post("Content-Length: 100\r\n", ""))), 401);
}

TEST_F(RequestReaderTest, ContinueIsPromisedOnceAndOnlyForABody) {
  RequestReader reader(kMaxBody, check);
  reader.read(post("Content-Length: 2\r\nExpect: 100-Continue\r\n", ""));
  EXPECT_TRUE(reader.takes_continue());
  EXPECT_FALSE(reader.takes_continue());
  RequestReader with_body(kMaxBody, check);
  with_body.read(post("Content-Length: 2\r\nExpect: 100-continue\r\n", "{"));
  EXPECT_FALSE(with_body.takes_continue());
}

}  // namespace
}  // namespace bicached
