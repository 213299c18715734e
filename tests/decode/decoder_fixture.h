#pragma once

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "decode/canvas_decoder.h"
#include "decode/planner.h"

namespace bicached {

inline Reuse reuse_of(int prefix_len, int depth, int refresh_depth, int interval, int commits) {
  return {{IntraCache::kNone, interval, commits, refresh_depth}, prefix_len, depth};
}

/// A decoder driven by a made-up model.
class CanvasDecoderTest : public testing::Test {
 protected:
  CanvasDecoderTest() {
    model.num_layers = 4;
    model.mask_token = 99;
    model.end_tokens = {1};
    request.prompt_ids = {5, 99, 6};  // a mask token in the prompt is just a token
    request.gen_length = 12;
    request.decode.block_length = 4;
    request.decode.steps = 12;
  }

  /// Decodes with `token_at`; probabilities fall from left to right. Returns the forwards.
  int decode(CanvasDecoder& decoder) {
    int num_forwards = 0;
    while (!decoder.finished() && num_forwards < 1000) {
      Forward forward;
      decoder.append_to(forward, 0, prefix);
      forwards.push_back(forward.groups);
      EXPECT_EQ(static_cast<int>(forward.logit_rows.size()), decoder.num_logit_rows());
      std::vector<RowResult> results;
      for (const LogitRow& row : forward.logit_rows) {
        RowResult result;
        result.token = token_at.count(row.row) ? token_at[row.row] : 7;
        result.probability = result.confidence = 1.0f / static_cast<float>(2 + row.row);
        result.entropy = certain.count(row.row) > 0 ? 0.0f : static_cast<float>(2 + row.row);
        results.push_back(result);
      }
      decoder.commit(results);
      for (const DecidedToken& t : decoder.take_final_tokens()) text.push_back(t.token);
      ++num_forwards;
    }
    return num_forwards;
  }

  GenerateRequest request;
  ModelInfo model;
  std::map<int, TokenId> token_at;
  std::set<int> certain;  // rows of entropy 0; that of the others grows from left to right
  std::vector<TokenId> text;
  PrefixStates prefix;
  std::vector<std::vector<RowGroup>> forwards;
};

}  // namespace bicached
