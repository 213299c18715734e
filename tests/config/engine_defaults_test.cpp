#include "config/engine_defaults.h"

#include <gtest/gtest.h>

namespace bicached {
namespace {

ModelInfo model_on(int64_t device_bytes, int block_length = 32) {
  ModelInfo model;
  model.device_bytes = device_bytes;
  model.decoder.block_length = block_length;
  model.forward_bytes_per_row = 147456;  // LLaDA-8B in bfloat16
  return model;
}

constexpr int64_t kGiB = int64_t{1} << 30;

int rows(int64_t device_bytes) {
  return resolve_engine_defaults({}, model_on(device_bytes)).max_rows_per_forward;
}

int canvases(int64_t device_bytes, int block_length) {
  return resolve_engine_defaults({}, model_on(device_bytes, block_length)).max_running;
}

TEST(EngineDefaults, WhatIsGivenStays) {
  EngineSettings given;
  given.max_running = 3;
  given.max_rows_per_forward = 100;
  for (const int64_t bytes : {int64_t{0}, 140 * kGiB}) {
    const EngineSettings resolved = resolve_engine_defaults(given, model_on(bytes));
    EXPECT_EQ(resolved.max_running, 3);
    EXPECT_EQ(resolved.max_rows_per_forward, 100);
  }
}

TEST(EngineDefaults, ForwardsOfACardTakeAsManyRowsAsItsMemoryAllows) {
  EXPECT_EQ(rows(0), 4096);
  EXPECT_EQ(rows(8 * kGiB), 4096);
  EXPECT_EQ(rows(24 * kGiB), 4096);
  EXPECT_EQ(rows(48 * kGiB), 8192);
  EXPECT_EQ(rows(80 * kGiB), 16384);
  EXPECT_EQ(rows(int64_t{1} << 50), 16384);
}

TEST(EngineDefaults, ShortBlocksNeedMoreCanvasesToFillACard) {
  EXPECT_EQ(canvases(0, 4), 16);
  EXPECT_EQ(canvases(80 * kGiB, 32), 16);
  EXPECT_EQ(canvases(80 * kGiB, 8), 64);
  EXPECT_EQ(canvases(80 * kGiB, 1), 128);
  EXPECT_EQ(canvases(80 * kGiB, 1024), 16);
}

}  // namespace
}  // namespace bicached
