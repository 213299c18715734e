#include "denoise/sampler.h"

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "bicached/error.h"
#include "decode/noise.h"

namespace bicached {
namespace {

/// One row of logits under one LogitRow.
RowResult sample(const std::vector<float>& logits, const LogitRow& row, const TokenRules& rules) {
  const std::vector<LogitRow> rows{row};
  return read_rows({sample_rows(at::tensor(logits).unsqueeze(0).clone(), rows, rules)}, rows)[0];
}

class SamplerTest : public ::testing::Test {
 protected:
  LogitRow row() {
    LogitRow row;
    row.sampling = &sampling_;
    return row;
  }
  /// Tokens drawn at many uniforms.
  std::set<TokenId> drawn(const std::vector<float>& logits) {
    std::set<TokenId> tokens;
    for (int i = 0; i < 2000; ++i) {
      LogitRow r = row();
      r.uniform = counter_uniform(9, 0, static_cast<uint64_t>(i));
      tokens.insert(sample(logits, r, rules_).token);
    }
    return tokens;
  }
  SamplingParams sampling_;
  const std::vector<TokenId> ends_{4};
  TokenRules rules_{6, -1};
};

TEST_F(SamplerTest, GreedyTakesTheMostProbableLowestIdFirst) {
  const RowResult result = sample({0, 3, 1, 3, 2, 0}, row(), rules_);
  EXPECT_EQ(result.token, 1);
  EXPECT_FLOAT_EQ(result.margin, 0.0f);
}

TEST_F(SamplerTest, TheFourNumbersAreOfTheWholeRow) {
  const std::vector<float> logits{std::log(0.5f),    std::log(0.25f),    std::log(0.125f),
                                  std::log(0.0625f), std::log(0.03125f), std::log(0.03125f)};
  const RowResult result = sample(logits, row(), rules_);
  EXPECT_EQ(result.token, 0);
  EXPECT_NEAR(result.probability, 0.5, 1e-6);
  EXPECT_NEAR(result.margin, 0.25, 1e-6);
  EXPECT_NEAR(result.entropy, 1.9375 * std::log(2.0), 1e-5);
}

TEST_F(SamplerTest, MaskAndUnusedRowsShareTheSoftmaxButAreNeverChosen) {
  rules_ = {4, 2};
  const std::vector<float> logits{0, 1, 5, 0, 4, 0};  // mask 2; 4 and 5 are past the vocabulary
  double total = 0;
  for (const float logit : logits) total += std::exp(logit);
  const RowResult greedy = sample(logits, row(), rules_);
  EXPECT_EQ(greedy.token, 1);
  EXPECT_NEAR(greedy.probability, std::exp(1.0) / total, 1e-6);
  EXPECT_NEAR(greedy.margin, (std::exp(1.0) - std::exp(5.0)) / total, 1e-6);
  sampling_.temperature = 2.0f;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1, 3}));
}

TEST_F(SamplerTest, BiasIsAddedAndEndTokensAreSuppressed) {
  const std::vector<float> logits{0, 1, 2, 0, 9, 0};
  EXPECT_EQ(sample(logits, row(), rules_).token, 4);
  LogitRow no_end = row();
  no_end.never = ends_;
  const RowResult result = sample(logits, no_end, rules_);
  EXPECT_EQ(result.token, 2);
  EXPECT_NEAR(result.probability, std::exp(2.0) / (std::exp(2.0) + std::exp(1.0) + 3), 1e-6);
  EXPECT_TRUE(std::isfinite(result.entropy));
  sampling_.logit_bias = {{3, 100.0f}, {99, 100.0f}, {-1, 5.0f}};
  EXPECT_EQ(sample(logits, row(), rules_).token, 3);
}

TEST_F(SamplerTest, TopPKeepsTheTokenThatPassesIt) {
  sampling_.temperature = 1.0f;
  const std::vector<float> logits{std::log(0.4f),  std::log(0.3f),  std::log(0.2f),
                                  std::log(0.05f), std::log(0.03f), std::log(0.02f)};
  sampling_.top_p = 0.5f;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0, 1}));
  sampling_.top_p = 0.01f;
  EXPECT_EQ(drawn(logits), (std::set<TokenId>{0}));
}

TEST_F(SamplerTest, TopKKeepsTies) {
  sampling_.temperature = 1.0f;
  sampling_.top_k = 2;
  EXPECT_EQ(drawn({3, 2, 2, 0, 0, 0}), (std::set<TokenId>{0, 1, 2}));
  sampling_.top_k = 1;
  EXPECT_EQ(drawn({3, 2, 2, 0, 0, 0}), (std::set<TokenId>{0}));
  sampling_.top_k = 1000;
  EXPECT_EQ(drawn({0, 0, 0, 0, 0, 0}).size(), 6u);
}

TEST_F(SamplerTest, TheEndsOfTheUniformAreTokensWithProbability) {
  rules_ = {6, 0};
  sampling_.temperature = 1.0f;
  LogitRow low = row(), high = row();
  high.uniform = std::nextafter(1.0, 0.0);
  const std::vector<float> logits{9, 0, 0,
                                  0, 0, -200};  // the last is impossible, the first the mask
  EXPECT_EQ(sample(logits, low, rules_).token, 1);
  EXPECT_EQ(sample(logits, high, rules_).token, 4);
}

TEST_F(SamplerTest, GivesAsManyAlternativesAsEachRowAsks) {
  SamplingParams many;
  many.num_top_logprobs = 3;
  sampling_.num_top_logprobs = 0;
  SamplingParams none;
  std::vector<LogitRow> rows(3);
  rows[0].sampling = &many;
  rows[1].sampling = &sampling_;
  rows[2].sampling = &none;
  const at::Tensor logits = at::tensor(std::vector<float>{0, 3, 1, 2, 0, 0}).repeat({3, 1});
  const auto results = read_rows({sample_rows(logits, rows, rules_)}, rows);
  ASSERT_EQ(results[0].top.size(), 3u);
  EXPECT_EQ(results[0].top[0].token, 1);
  EXPECT_EQ(results[0].top[1].token, 3);
  EXPECT_EQ(results[0].top[2].token, 2);
  EXPECT_NEAR(results[0].top[0].logprob, std::log(results[0].probability), 1e-5);
  EXPECT_TRUE(results[1].top.empty());
  EXPECT_TRUE(results[2].top.empty());
}

TEST_F(SamplerTest, ARowsDrawDoesNotDependOnItsNeighbours) {
  SamplingParams warm;
  warm.temperature = 0.8f;
  SamplingParams cut = warm;
  cut.top_k = 2;
  LogitRow a, b, c;
  a.sampling = &warm;
  a.uniform = 0.7;
  b.sampling = &cut;
  b.uniform = 0.9;
  c.sampling = &sampling_;
  const std::vector<float> logits{1, 2, 3, 2, 1, 0};
  const std::vector<LogitRow> rows{a, b, c};
  const auto together =
      read_rows({sample_rows(at::tensor(logits).repeat({3, 1}), rows, rules_)}, rows);
  EXPECT_EQ(together[1].token, sample(logits, b, rules_).token);
  EXPECT_EQ(together[2].token, 2);
  EXPECT_FLOAT_EQ(together[0].probability,
                  std::exp(logits[static_cast<size_t>(together[0].token)]) /
                      (std::exp(3.0f) + 2 * std::exp(2.0f) + 2 * std::exp(1.0f) + 1));
}

TEST_F(SamplerTest, ConfidenceIsThatOfTheFilteredDistributionWhereTheFamilySaysSo) {
  const std::vector<float> logits{std::log(0.4f),  std::log(0.3f),  std::log(0.2f),
                                  std::log(0.05f), std::log(0.03f), std::log(0.02f)};
  sampling_.top_k = 2;
  RowResult result = sample(logits, row(), rules_);
  EXPECT_NEAR(result.confidence, 0.4, 1e-6);
  rules_.filters_confidence = true;
  result = sample(logits, row(), rules_);
  EXPECT_EQ(result.token, 0);
  EXPECT_NEAR(result.probability, 0.4, 1e-6);
  EXPECT_NEAR(result.confidence, 0.4 / 0.7, 1e-6);
  EXPECT_NEAR(result.margin, 0.1 / 0.7, 1e-6);
  EXPECT_NEAR(result.entropy, -(4 * std::log(4 / 7.0) + 3 * std::log(3 / 7.0)) / 7, 1e-5);
  sampling_ = {};
  sampling_.temperature = 0.5f;
  LogitRow first = row();
  const double total = 0.16 + 0.09 + 0.04 + 0.0025 + 0.0009 + 0.0004;
  EXPECT_NEAR(sample(logits, first, rules_).confidence, 0.16 / total, 1e-5);
}

TEST_F(SamplerTest, AMaskThatFiltersAllOthersLeavesTheBestToken) {
  rules_ = {6, 0, true};
  sampling_.top_k = 1;
  sampling_.temperature = 1.0f;
  const RowResult result = sample({9, 1, 2, 0, 0, 0}, row(), rules_);
  EXPECT_EQ(result.token, 2);
  EXPECT_EQ(result.confidence, 0.0f);
}

TEST_F(SamplerTest, DiscountedTokensLeaveTheDistributionAfterTheChoice) {
  const std::vector<float> logits{std::log(0.1f), std::log(0.2f),  std::log(0.1f),
                                  std::log(0.1f), std::log(0.45f), std::log(0.05f)};
  LogitRow careful = row();
  careful.discounted = ends_;
  RowResult result = sample(logits, careful, rules_);
  EXPECT_EQ(result.token, 4);
  EXPECT_EQ(result.confidence, 0.0f);
  EXPECT_NEAR(result.probability, 0.45, 1e-6);
  careful.never = ends_;
  result = sample(logits, careful, rules_);
  EXPECT_EQ(result.token, 1);
  EXPECT_NEAR(result.confidence, 0.2 / 0.55, 1e-6);
}

TEST_F(SamplerTest, GuidanceGoesAwayFromTheLogitsWithoutThePrompt) {
  std::vector<LogitRow> rows{row(), row(), row()};
  rows[0].guidance = 2.0f;
  const std::vector<float> with{1, 2, 0, 0, 0, 0}, without{0, 3, 0, 0, 0, 0};
  const at::Tensor logits = at::stack({at::tensor(with), at::tensor(without), at::tensor(with)});
  const auto results = read_rows({sample_rows(logits, rows, rules_)}, rows);
  EXPECT_EQ(results[0].token, 0) << "0 + 2 (1 - 0) = 2 against 3 + 2 (2 - 3) = 1";
  const double total = std::exp(2.0) + std::exp(1.0) + 4;
  EXPECT_NEAR(results[0].probability, std::exp(2.0) / total, 1e-6);
  EXPECT_EQ(results[2].token, 1) << "a row without guidance is as it was";
}

TEST_F(SamplerTest, DivergenceIsTheGreatestOfTheLastTwoSteps) {
  DistributionHistory history;
  const auto step = [&](float p, bool keep) {
    std::vector<LogitRow> rows{row(), row()};
    rows[1].row = 5;
    rows[1].history = 3;
    const std::vector<float> logits{std::log(p), std::log(1 - p), -100, -100, -100, -100};
    const at::Tensor two = at::tensor(logits).repeat({2, 1});
    const auto results = read_rows({sample_rows(two, rows, rules_, &history)}, rows);
    EXPECT_TRUE(std::isinf(results[0].divergence)) << "it did not ask";
    keep ? history.keep() : history.drop();
    return results[1].divergence;
  };
  const auto kl = [](double p, double q) {
    return p * std::log(p / q) + (1 - p) * std::log((1 - p) / (1 - q));
  };
  EXPECT_TRUE(std::isinf(step(0.5f, true)));
  EXPECT_TRUE(std::isinf(step(0.6f, true))) << "one step of two";
  EXPECT_NEAR(step(0.61f, false), kl(0.6, 0.5), 1e-5) << "the greater of the two";
  EXPECT_NEAR(step(0.61f, true), kl(0.6, 0.5), 1e-5) << "a forward that failed did not count";
  EXPECT_NEAR(step(0.61f, true), kl(0.61, 0.6), 1e-5);
  history.forget(3);
  EXPECT_TRUE(std::isinf(step(0.6f, true)));
}

/// Chi-square of draws against the distribution that the parameters leave of it.
TEST_F(SamplerTest, FrequenciesAreThoseOfTheDistribution) {
  const std::vector<double> probabilities{0.3, 0.25, 0.2, 0.15, 0.07, 0.03};
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  struct Case {
    float temperature, top_p;
    int top_k;
    size_t num_left;
  };
  for (const bool filters_confidence : {false, true}) {
    for (const Case& c : {Case{1.0f, 1.0f, 0, 6}, Case{0.7f, 1.0f, 0, 6}, Case{1.0f, 0.6f, 0, 3},
                          Case{1.5f, 1.0f, 4, 4}, Case{1.0f, 0.9f, 3, 3}}) {
      rules_.filters_confidence = filters_confidence;
      sampling_.temperature = c.temperature;
      sampling_.top_p = c.top_p;
      sampling_.top_k = c.top_k;
      std::vector<double> want;
      double total = 0;
      for (size_t i = 0; i < c.num_left; ++i) {
        want.push_back(std::pow(probabilities[i], 1 / c.temperature));
        total += want.back();
      }
      constexpr int kDraws = 20000;
      std::vector<LogitRow> rows(kDraws, row());
      for (size_t i = 0; i < rows.size(); ++i) rows[i].uniform = counter_uniform(5, 0, i);
      const at::Tensor many = at::tensor(logits).repeat({kDraws, 1});
      std::vector<int> counts(6, 0);
      for (const RowResult& r : read_rows({sample_rows(many, rows, rules_)}, rows)) {
        ++counts[static_cast<size_t>(r.token)];
      }
      double chi_square = 0;
      for (size_t i = 0; i < 6; ++i) {
        if (i >= c.num_left) {
          EXPECT_EQ(counts[i], 0) << "token " << i << " was filtered out";
          continue;
        }
        const double expected = kDraws * want[i] / total;
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
      }
      // 5 degrees of freedom or fewer: over 25 comes once in 7,000 times.
      EXPECT_LT(chi_square, 25) << c.temperature << " " << c.top_p << " " << c.top_k;
    }
  }
}

/// A row's distribution by loops: vLLM's definitions, in its order.
struct PlainRow {
  std::vector<double> logits;
  std::vector<double> shares() const {
    double total = 0;
    std::vector<double> out;
    for (const double l : logits) total += std::exp(l);
    for (const double l : logits) out.push_back(std::exp(l) / total);
    return out;
  }
};

PlainRow plain_row(const std::vector<float>& logits, const LogitRow& row, TokenId mask) {
  const SamplingParams& s = *row.sampling;
  PlainRow plain;
  for (TokenId t = 0; t < static_cast<TokenId>(logits.size()); ++t) {
    double logit = logits[static_cast<size_t>(t)];
    if (t != mask) {
      const auto is_in = [&](auto list) { return std::ranges::find(list, t) != list.end(); };
      const bool is_allowed = s.allowed_tokens.empty() || is_in(s.allowed_tokens);
      if (!is_allowed || is_in(row.never) || is_in(row.never_here)) logit = -INFINITY;
      for (const auto& [token, bias] : s.logit_bias) logit += token == t ? bias : 0;
      int in_output = 0;
      bool in_prompt = false;
      for (const CountedToken& c : row.counted) {
        if (c.token != t) continue;
        in_output = c.num_decided - (row.current == t ? 1 : 0);
        in_prompt = c.is_given;
      }
      if (in_output > 0 || in_prompt) {
        logit = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;
      }
      logit -= s.frequency_penalty * in_output;
      logit -= in_output > 0 ? s.presence_penalty : 0;
    }
    plain.logits.push_back(logit);
  }
  return plain;
}

TEST_F(SamplerTest, RulesAndPenaltiesAreThoseOfAPlainLoop) {
  constexpr int kSize = 12;
  constexpr TokenId kMaskToken = 11;
  rules_ = {kSize, kMaskToken};
  uint64_t next = 0;
  const auto random = [&] { return counter_uniform(31, 0, ++next); };
  for (int round = 0; round < 300; ++round) {
    SamplingParams sampling;
    if (random() < 0.7) sampling.frequency_penalty = static_cast<float>(random() * 4 - 2);
    if (random() < 0.7) sampling.presence_penalty = static_cast<float>(random() * 4 - 2);
    if (random() < 0.7) sampling.repetition_penalty = static_cast<float>(0.3 + random() * 2);
    std::vector<float> logits;
    std::vector<CountedToken> counted;
    std::vector<TokenId> never, never_here;
    for (TokenId t = 0; t < kSize; ++t) {
      logits.push_back(static_cast<float>(random() * 8 - 4));
      if (t == kMaskToken) continue;
      if (random() < 0.6) counted.push_back({t, static_cast<int>(random() * 4), random() < 0.5});
      if (random() < 0.3) sampling.logit_bias.emplace_back(t, static_cast<float>(random() * 6 - 3));
      if (round % 3 == 1 && random() < 0.7) sampling.allowed_tokens.push_back(t);
      if (t > 0 && random() < 0.1) never.push_back(t);
      if (t > 0 && random() < 0.1) never_here.push_back(t);
    }
    if (round % 3 == 1) sampling.allowed_tokens.push_back(0);
    LogitRow row;
    row.sampling = &sampling;
    row.counted = counted;
    row.never = never;
    row.never_here = never_here;
    if (!counted.empty() && counted[0].num_decided > 0) row.current = counted[0].token;
    const RowResult result = sample(logits, row, rules_);
    const PlainRow plain = plain_row(logits, row, kMaskToken);
    TokenId best = 0;
    for (TokenId t = 1; t < kMaskToken; ++t) {
      if (plain.logits[static_cast<size_t>(t)] > plain.logits[static_cast<size_t>(best)]) best = t;
    }
    ASSERT_EQ(result.token, best) << round;
    EXPECT_NEAR(result.probability, plain.shares()[static_cast<size_t>(best)], 1e-5) << round;
    double entropy = 0;
    for (const double p : plain.shares()) entropy -= p > 0 ? p * std::log(p) : 0;
    EXPECT_NEAR(result.entropy, entropy, 1e-4) << round;
  }
}

TEST_F(SamplerTest, MinPKeepsWhatALoopKeeps) {
  uint64_t next = 0;
  const auto random = [&] { return counter_uniform(37, 0, ++next); };
  for (const float temperature : {0.5f, 1.0f, 1.7f}) {
    for (const float min_p : {0.05f, 0.3f, 0.9f, 1.0f}) {
      sampling_.temperature = temperature;
      sampling_.min_p = min_p;
      std::vector<float> logits;
      for (int t = 0; t < 6; ++t) logits.push_back(static_cast<float>(random() * 3));
      double greatest = 0, total = 0;
      std::vector<double> weights;
      for (const float l : logits) weights.push_back(std::exp(l / temperature));
      for (const double w : weights) greatest = std::max(greatest, w);
      for (double& w : weights) total += w = w < min_p * greatest ? 0 : w;
      constexpr int kDraws = 4000;
      std::vector<LogitRow> rows(kDraws, row());
      for (size_t i = 0; i < rows.size(); ++i) rows[i].uniform = counter_uniform(41, next, i);
      std::vector<int> counts(6, 0);
      const at::Tensor many = at::tensor(logits).repeat({kDraws, 1});
      for (const RowResult& r : read_rows({sample_rows(many, rows, rules_)}, rows)) {
        ++counts[static_cast<size_t>(r.token)];
      }
      for (size_t t = 0; t < 6; ++t) {
        const double want = weights[t] / total;
        if (want == 0) {
          EXPECT_EQ(counts[t], 0) << t;
        }
        // Five standard deviations of a share.
        EXPECT_NEAR(counts[t] / double{kDraws}, want, 5 * std::sqrt(0.25 / kDraws)) << t;
      }
    }
  }
}

TEST_F(SamplerTest, WhereEveryTokenIsForbiddenNoneIsChosen) {
  sampling_.allowed_tokens = {2, 4};
  const std::vector<TokenId> never{2};
  SamplingParams other;
  for (const TokenId mask : {-1, 0}) {
    rules_ = {6, mask};
    for (const float temperature : {0.0f, 1.0f}) {
      sampling_.temperature = temperature;
      std::vector<LogitRow> rows{row(), row(), row()};
      rows[0].never = rows[1].never = never;
      rows[0].never_here = ends_;
      rows[2].sampling = &other;
      rows[0].uniform = rows[1].uniform = 0.999;
      const at::Tensor logits = at::tensor(std::vector<float>{5, 1, 4, 3, 2, 1}).repeat({3, 1});
      const auto results = read_rows({sample_rows(logits, rows, rules_)}, rows);
      EXPECT_EQ(results[0].token, kNoToken);
      EXPECT_EQ(results[1].token, 4) << "what is left, however improbable";
      EXPECT_EQ(results[2].token, mask == 0 ? 2 : 0);
    }
  }
}

TEST_F(SamplerTest, AForcedTokenHasTheProbabilityItHad) {
  rules_ = {6, 5};
  sampling_.forced = 3;
  sampling_.num_top_logprobs = 1;
  const std::vector<float> logits{0, 3, 1, -2, 0, 2};
  double total = 0;
  for (const float logit : logits) total += std::exp(logit);
  const RowResult result = sample(logits, row(), rules_);
  EXPECT_EQ(result.token, 3);
  EXPECT_NEAR(result.probability, std::exp(-2.0) / total, 1e-6);
  EXPECT_EQ(result.top[0].token, 1) << "the most probable one is told all the same";
}

/// WatchedDenoiser refuses them.
TEST_F(SamplerTest, HidesNoLogitsThatAreNoNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const RowResult result = sample({nan, nan, nan, nan, nan, nan}, row(), rules_);
  EXPECT_TRUE(std::isnan(result.probability));
  EXPECT_TRUE(std::isnan(result.entropy));
}

}  // namespace
}  // namespace bicached
