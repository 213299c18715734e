#include "bicached/unmasker.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "bicached/error.h"
#include "decode/canvas_decoder.h"
#include "decode/noise.h"

namespace bicached {
namespace {

TEST(Noise, IsUniformAndAFunctionOfItsArguments) {
  double sum = 0, sum_squares = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double u =
        counter_uniform(7, static_cast<uint64_t>(i / 100), static_cast<uint64_t>(i % 100));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    sum_squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.01);
  EXPECT_NEAR(sum_squares / kDraws, 1.0 / 3, 0.01);
  EXPECT_EQ(counter_uniform(1, 2, 3), counter_uniform(1, 2, 3));
  EXPECT_NE(counter_uniform(1, 2, 3), counter_uniform(1, 3, 2));
}

std::vector<double> noise_of(int count, uint64_t seed) {
  std::vector<double> noise;
  for (int i = 0; i < count; ++i) {
    noise.push_back(counter_uniform(seed, 1, static_cast<uint64_t>(i)));
  }
  return noise;
}

std::unique_ptr<Unmasker> unmasker_of(const std::string& name, const AlgorithmParams& params = {}) {
  DecodeParams decode;
  decode.algorithm = name;
  decode.params = params;
  return make_unmasker(decode);
}

/// Every algorithm of the table keeps these promises, by either schedule.
class UnmaskerContract : public testing::TestWithParam<std::tuple<std::string, Schedule>> {
 protected:
  static std::vector<Candidate> candidates(int count, uint64_t seed) {
    std::vector<Candidate> list;
    for (int i = 0; i < count; ++i) {
      const auto u = static_cast<float>(counter_uniform(seed, 0, static_cast<uint64_t>(i)));
      list.push_back({10 + i, i, u, u / 2, 1 - u, u / 10});
    }
    return list;
  }
  std::unique_ptr<Unmasker> unmasker() const { return unmasker_of(std::get<0>(GetParam())); }

  /// Decodes 30 positions in blocks of 8 with made-up results. Returns canvas and forwards.
  std::pair<std::vector<TokenId>, int> decode(int steps, uint64_t seed) const {
    GenerateRequest request;
    request.prompt_ids = {5, 6};
    request.gen_length = 30;
    request.sampling.seed = seed;
    request.decode.algorithm = std::get<0>(GetParam());
    request.decode.schedule = std::get<1>(GetParam());
    request.decode.block_length = 8;
    request.decode.steps = steps;
    ModelInfo model;
    model.num_layers = 4;
    model.mask_token = 99;
    CanvasDecoder decoder(request, model, {});
    int num_forwards = 0;
    for (; !decoder.finished() && num_forwards < 100; ++num_forwards) {
      Forward forward;
      decoder.append_to(forward, 0, {});
      std::vector<RowResult> results;
      for (const LogitRow& row : forward.logit_rows) {
        RowResult& result = results.emplace_back();
        const double u =
            counter_uniform(static_cast<uint64_t>(num_forwards), 7, static_cast<uint64_t>(row.row));
        result.token = static_cast<TokenId>(90 * u);
        result.probability = result.confidence = static_cast<float>(u);
        result.margin = static_cast<float>(u / 2);
        result.entropy = static_cast<float>(1 - u);
        result.divergence = static_cast<float>(u / 20);
      }
      const int masked = decoder.canvas().num_masked();
      const bool revises = unmasker()->max_revisions() > 0;
      decoder.commit(results);  // throws at a position that is decided already, unless it revises
      EXPECT_TRUE(decoder.canvas().num_masked() < masked || revises) << "a forward for nothing";
    }
    EXPECT_TRUE(decoder.finished());
    return {decoder.canvas().tokens(), num_forwards};
  }
};

TEST_P(UnmaskerContract, ChoosesAscendingValidIndicesAndIsDeterministic) {
  const auto unmasker = this->unmasker();
  for (int count = 1; count < 40; ++count) {
    const auto list = candidates(count, static_cast<uint64_t>(count));
    const auto noise = noise_of(count, static_cast<uint64_t>(count));
    for (int step = 0; step < 4; ++step) {
      const BlockProgress progress{step, 4, 40, count, count, std::get<1>(GetParam()), noise};
      const std::vector<int> chosen = unmasker->choose(list, progress);
      EXPECT_EQ(chosen, unmasker->choose(list, progress));
      EXPECT_GE(static_cast<int>(chosen.size()), std::min(count, unmasker->min_choices(progress)));
      for (size_t i = 0; i < chosen.size(); ++i) {
        EXPECT_GE(chosen[i], i == 0 ? 0 : chosen[i - 1] + 1);
        EXPECT_LT(chosen[i], count);
      }
    }
  }
}

TEST_P(UnmaskerContract, TiesGoToTheLowestPosition) {
  const std::vector<Candidate> equal(5, Candidate{0, 1, 0.5f, 0.1f, 1.0f});
  const std::vector<double> noise(5, 0.5);
  const BlockProgress progress{0, 5, 5, 5, 5, std::get<1>(GetParam()), noise};
  const auto unmasker = this->unmasker();
  const int count = std::max(0, std::min(1, unmasker->min_choices(progress)));
  EXPECT_EQ(unmasker->choose(equal, progress), std::vector<int>(static_cast<size_t>(count), 0));
}

TEST_P(UnmaskerContract, EveryForwardDecidesSomethingAndTheTextIsTheSeeds) {
  for (const int steps : {4, 30, 100}) {
    const auto [tokens, num_forwards] = decode(steps, 3);
    EXPECT_LE(num_forwards, 30 + 4 * unmasker()->max_revisions());
    EXPECT_EQ(decode(steps, 3).first, tokens);
  }
}

std::string contract_name(const testing::TestParamInfo<UnmaskerContract::ParamType>& info) {
  return std::get<0>(info.param) +
         (std::get<1>(info.param) == Schedule::kEven ? "_even" : "_timesteps");
}

INSTANTIATE_TEST_SUITE_P(All, UnmaskerContract,
                         testing::Combine(testing::ValuesIn(unmasker_names()),
                                          testing::Values(Schedule::kEven, Schedule::kTimesteps)),
                         contract_name);

TEST(Unmasker, ParametersOfOneNameAreOneParameter) {
  std::map<std::string, const UnmaskerParam*> known;
  for (const UnmaskerInfo& info : unmasker_table()) {
    for (const UnmaskerParam& param : info.params) {
      const auto& [at, is_new] = known.emplace(param.limit.name, &param);
      EXPECT_EQ(at->second->default_value, param.default_value) << param.limit.name;
      EXPECT_EQ(at->second->limit.max, param.limit.max) << param.limit.name;
      EXPECT_GE(param.limit.min, 0) << "-1 leaves a setting open";
    }
  }
  EXPECT_EQ(known.size(), unmasker_params().size());
}

TEST(Unmasker, EachGoesByItsOwnNumber) {
  // Token, probability, margin, entropy.
  const std::vector<Candidate> list{
      {0, 1, 0.9f, 0.1f, 2.0f}, {1, 1, 0.5f, 0.4f, 1.0f}, {2, 1, 0.4f, 0.2f, 0.5f}};
  const std::vector<double> noise{0.3, 0.2, 0.7};
  const BlockProgress progress{0, 3, 3, 3, 3, Schedule::kEven, noise};
  EXPECT_EQ(unmasker_of("low_confidence")->choose(list, progress), std::vector<int>{0});
  EXPECT_EQ(unmasker_of("maskgit_plus")->choose(list, progress), std::vector<int>{0});
  EXPECT_EQ(unmasker_of("topk_margin")->choose(list, progress), std::vector<int>{1});
  EXPECT_EQ(unmasker_of("entropy")->choose(list, progress), std::vector<int>{2});
  EXPECT_EQ(unmasker_of("random")->choose(list, progress), std::vector<int>{2});
  EXPECT_EQ(unmasker_of("origin")->choose(list, progress), (std::vector<int>{0, 1}));
}

TEST(Unmasker, EntropyBoundTakesThoseOfTheLeastSumWithoutTheGreatest) {
  const std::vector<Candidate> list{
      {0, 1, 0.5f, 0, 0.4f}, {1, 1, 0.9f, 0, 0.1f}, {2, 1, 0.8f, 0, 0.2f}, {3, 1, 0.1f, 0, 0.9f}};
  const auto count = [&](double bound) {
    return unmasker_of("entropy_bound", {{"entropy_bound", bound}})->choose(list, {});
  };
  EXPECT_EQ(count(0.05), std::vector<int>{1});
  EXPECT_EQ(count(0.15), (std::vector<int>{1, 2}));        // 0.3 - 0.2
  EXPECT_EQ(count(0.35), (std::vector<int>{0, 1, 2}));     // 0.7 - 0.4
  EXPECT_EQ(count(0.75), (std::vector<int>{0, 1, 2, 3}));  // 1.6 - 0.9
}

TEST(Unmasker, EntropyMultiBlockTakesThoseUpToTheThresholdAndOneOfTheFirstBlock) {
  const auto multi = unmasker_of("entropy_multi_block", {{"entropy_threshold", 1.0}});
  std::vector<Candidate> list(4);
  const auto choose = [&](std::vector<float> entropies, Schedule schedule) {
    for (size_t i = 0; i < 4; ++i) list[i].entropy = entropies[i];
    BlockProgress progress;
    progress.num_masked = 4;
    progress.num_masked_in_first_block = 2;
    progress.schedule = schedule;
    return multi->choose(list, progress);
  };
  for (const Schedule schedule : {Schedule::kEven, Schedule::kTimesteps}) {
    EXPECT_EQ(choose({1.5f, 1.0f, 0.2f, 2.0f}, schedule), (std::vector<int>{1, 2}));
    EXPECT_EQ(choose({1.5f, 1.4f, 0.2f, 0.3f}, schedule), (std::vector<int>{1, 2, 3}));
    EXPECT_EQ(choose({1.5f, 1.6f, 1.7f, 1.8f}, schedule), (std::vector<int>{0}));
  }
  EXPECT_EQ(choose({1.5f, 1.6f, 1.2f, 1.8f}, Schedule::kEven), (std::vector<int>{0, 2}));
  EXPECT_EQ(choose({1.5f, 1.6f, 1.2f, 1.8f}, Schedule::kTimesteps), (std::vector<int>{0}));
}

TEST(Unmasker, KlassTakesWhatIsProbableAndStableElseTheSchedule) {
  const auto klass = unmasker_of("klass", {{"threshold", 0.6}, {"kl_threshold", 0.01}});
  std::vector<Candidate> list{
      {0, 1, 0.7f, 0, 0, 0.02f}, {1, 1, 0.65f, 0, 0, 0.005f}, {2, 1, 0.5f, 0, 0, 0.0f}};
  const BlockProgress progress{0, 3, 3, 3};
  EXPECT_EQ(klass->choose(list, progress), std::vector<int>{1});
  list[1].divergence = 0.02f;
  EXPECT_EQ(klass->choose(list, progress), std::vector<int>{0});
  EXPECT_TRUE(klass->wants_divergence());
}

TEST(Unmasker, QuotaThresholdCarriesOverWhatItLeft) {
  const auto unmasker = unmasker_of("quota_threshold", {{"threshold", 0.5}});
  const std::vector<Candidate> list{{0, 1, 0.9f}, {1, 1, 0.4f}, {2, 1, 0.6f}, {3, 1, 0.3f}};
  EXPECT_EQ(unmasker->choose(list, {0, 2, 4, 4}), (std::vector<int>{0, 2}));
  // Of three left after the first step three are looked at, and one is good enough or the best.
  const std::vector<Candidate> rest(list.begin() + 1, list.end());
  EXPECT_EQ(unmasker->choose(rest, {1, 2, 4, 3}), std::vector<int>{1});
  EXPECT_EQ(unmasker->min_choices({5, 2, 4, 2}), 1) << "steps go on while something is left";
}

/// Chi-square of counts against shares, as deviations (Wilson and Hilferty 1931).
double chi_square_deviation(const std::vector<int>& counts, const std::vector<double>& shares) {
  const double draws = std::accumulate(counts.begin(), counts.end(), 0.0);
  double chi_square = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    chi_square += std::pow(counts[i] - draws * shares[i], 2) / (draws * shares[i]);
  }
  const double freedom = static_cast<double>(counts.size()) - 1, spread = 2 / (9 * freedom);
  return (std::cbrt(chi_square / freedom) - (1 - spread)) / std::sqrt(spread);
}

TEST(Unmasker, AlgTempDrawsPositionsBySoftmaxOfTheScore) {
  const std::vector<Candidate> list{{0, 1, 0.9f}, {1, 1, 0.5f}, {2, 1, 0.4f}, {3, 1, 0.1f}};
  constexpr double kTemp = 0.5;
  std::vector<double> shares;
  for (const Candidate& c : list) shares.push_back(std::exp(c.probability / kTemp));
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= total;
  const auto unmasker = unmasker_of("maskgit_plus", {{"alg_temp", kTemp}});
  std::vector<int> counts(4, 0);
  for (uint64_t seed = 0; seed < 20000; ++seed) {
    const auto noise = noise_of(4, seed);
    ++counts[static_cast<size_t>(
        unmasker->choose(list, {0, 4, 4, 4, 4, Schedule::kEven, noise})[0])];
  }
  EXPECT_LT(chi_square_deviation(counts, shares), 4);
}

TEST(Unmasker, OriginAndRandomFavourNoPosition) {
  const std::vector<Candidate> list{{0, 1, 0.9f}, {1, 1, 0.5f}, {2, 1, 0.4f}, {3, 1, 0.1f}};
  for (const char* name : {"random", "origin"}) {
    const auto unmasker = unmasker_of(name);
    std::vector<int> counts(4, 0);
    for (uint64_t seed = 0; seed < 20000; ++seed) {
      const auto noise = noise_of(4, seed);
      for (const int i : unmasker->choose(list, {0, 4, 4, 4, 4, Schedule::kEven, noise})) {
        ++counts[static_cast<size_t>(i)];
      }
    }
    EXPECT_LT(chi_square_deviation(counts, std::vector<double>(4, 0.25)), 4) << name;
    EXPECT_NEAR(std::accumulate(counts.begin(), counts.end(), 0) / 20000.0, 1.0, 0.03) << name;
  }
}

TEST(Unmasker, AnUnknownNameListsTheKnownOnes) {
  DecodeParams params;
  params.algorithm = "nope";
  try {
    make_unmasker(params);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.param(), "algorithm");
    EXPECT_NE(std::string(e.what()).find("low_confidence, random, threshold"), std::string::npos);
  }
}

TEST(Unmasker, ThresholdTakesAllThatReachIt) {
  DecodeParams params;
  params.algorithm = "threshold";
  params.params["threshold"] = 0.5;
  const std::vector<Candidate> list{{0, 1, 0.4f}, {1, 1, 0.5f}, {2, 1, 0.9f}, {3, 1, 0.1f}};
  EXPECT_EQ(make_unmasker(params)->choose(list, {}), (std::vector<int>{1, 2}));
}

}  // namespace
}  // namespace bicached
