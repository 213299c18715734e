#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "bicached/chat_template.h"
#include "model/model_config.h"
#include "model/refusal.h"
#include "model/tensor_list.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using namespace bicached::testing;

TEST(DreamConfig, ReadsTheQwenLayoutAndHowTheFamilyDecodes) {
  const TempFolder folder;
  write_tiny_dream(folder);
  const ParsedModel model = parse_model_folder(folder.path());
  EXPECT_STREQ(model.family->name, "dream");
  EXPECT_EQ(model.family->logits_shift, 1);
  EXPECT_EQ(model.family->decoder.schedule, Schedule::kTimesteps);
  EXPECT_TRUE(model.family->decoder.filters_confidence);
  EXPECT_EQ(model.config.head_size, 8);
  EXPECT_EQ(model.config.num_kv_heads, 2);
  EXPECT_TRUE(model.config.qkv_bias);
  EXPECT_FALSE(model.config.tied_head);
  EXPECT_EQ(model.config.mask_token, 57);
  EXPECT_EQ(model.config.end_tokens, (std::vector<TokenId>{55}));
}

TEST(ModelFamilies, ChatTemplatesOfQwensFamiliesAreChatMl) {
  const std::string question = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
  for (const ModelFamily& family : family_table()) {
    if (std::string(family.chat_template).find("im_start") == std::string::npos) continue;
    const auto chat = ChatTemplate::compile(family.chat_template, "", "", {});
    const std::string system = family.name == std::string("dream")
                                   ? "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                                   : "";
    EXPECT_EQ(chat->render({{"user", "Hi"}}, true).text(), system + question) << family.name;
    EXPECT_EQ(chat->render({{"system", "Be short."}, {"user", "Hi"}}, true).text(),
              "<|im_start|>system\nBe short.<|im_end|>\n" + question)
        << family.name;
  }
}

TEST(DreamConfig, NamesKeyValueAndWhatIsSupported) {
  const TempFolder folder;
  const auto refusal_with = [&](const std::string& key, const json& value) {
    json config = tiny_dream_config();
    config[key] = value;
    folder.write("config.json", config.dump());
    return refusal([&] { parse_model_folder(folder.path()); });
  };
  EXPECT_THAT(refusal_with("use_sliding_window", true),
              AllOf(HasSubstr("use_sliding_window is true"), HasSubstr("false")));
  EXPECT_THAT(refusal_with("rope_scaling", {{"type", "yarn"}}), HasSubstr("rope_scaling"));
  EXPECT_THAT(refusal_with("hidden_act", "gelu"), HasSubstr("silu"));
  EXPECT_THAT(refusal_with("mask_token_id", 60), HasSubstr("mask_token_id is 60"));
  EXPECT_THAT(refusal_with("hidden_size", 30), HasSubstr("hidden_size 30"));
  EXPECT_THAT(refusal_with("model_type", "qwen2"),
              AllOf(HasSubstr("llada"), HasSubstr("Dream"), HasSubstr("a2d-qwen3")));
}

TEST(A2dConfig, TakesTheMaskTokenOfTheTokenizerWhereTheConfigHasNone) {
  const TempFolder folder;
  json config = tiny_dream_config();
  config["model_type"] = "a2d-qwen3";
  config["head_dim"] = 10;  // not the width by the heads
  folder.write("config.json", config.dump());
  const auto parse = [&] { return parse_model_folder(folder.path()).config; };
  EXPECT_EQ(parse().mask_token, 57);
  EXPECT_EQ(parse().head_size, 10);
  EXPECT_TRUE(parse().qk_norm);
  EXPECT_FALSE(parse().qkv_bias);
  config.erase("mask_token_id");
  folder.write("config.json", config.dump());
  EXPECT_THAT(refusal(parse), AllOf(HasSubstr("mask_token_id is missing"), HasSubstr("'<|mask|>'"),
                                    HasSubstr("below 60")));
  folder.write("tokenizer_config.json",
               R"({"added_tokens_decoder":{"56":{"content":"<|mask|>"}}})");
  EXPECT_EQ(parse().mask_token, 56);
  config["attention_bias"] = true;
  folder.write("config.json", config.dump());
  EXPECT_THAT(refusal(parse), AllOf(HasSubstr("attention_bias is true"), HasSubstr("false")));
}

TEST(ModelFamilies, RoleTagsAreThoseOfLladas) {
  const auto render = [](const char* name, const std::vector<ChatMessage>& messages) {
    for (const ModelFamily& family : family_table()) {
      if (family.name != std::string(name)) continue;
      return ChatTemplate::compile(family.chat_template, "", "", {})->render(messages, true).text();
    }
    return std::string("no such family");
  };
  const std::string rest = "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>";
  EXPECT_EQ(render("llada-moe", {{"user", "Hi"}}), rest);
  EXPECT_EQ(render("llada-moe", {{"system", "Be short."}, {"user", "Hi"}}),
            "<role>SYSTEM</role>Be short.<|role_end|>" + rest);
  EXPECT_EQ(render("llada2", {{"user", "Hi"}}),
            "<role>SYSTEM</role>detailed thinking off<|role_end|>" + rest);
  EXPECT_EQ(render("llada2", {{"system", "Be short."}, {"user", "Hi"}}),
            "<role>SYSTEM</role>Be short.\ndetailed thinking off<|role_end|>" + rest);
  EXPECT_EQ(render("llada2", {{"user", "A"}, {"assistant", "B"}, {"user", "Hi"}}),
            "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>A<|role_end|>"
            "<role>ASSISTANT</role>B<|role_end|>" +
                rest);
}

/// The config.json of a checkpoint that the Python references left, with changes.
class ReferenceConfig : public ::testing::Test {
 protected:
  static json config_of(const std::string& checkpoint) {
    json config = json::parse(
        std::ifstream(BICACHED_SOURCE_DIR "/tests/reference/" + checkpoint + "/config.json"));
    config["mask_token_id"] = 7;  // in some it is the tokenizer that says so
    return config;
  }
  ParsedModel parse(const json& config) {
    folder_.write("config.json", config.dump());
    return parse_model_folder(folder_.path());
  }
  std::string refusal_with(json config, const std::string& key, const json& value) {
    config[key] = value;
    return refusal([&] { parse(config); });
  }
  TempFolder folder_;
};

TEST_F(ReferenceConfig, SdarAttendsByBlocksAndMayHaveExperts) {
  const json dense = config_of("goldens-sdar/checkpoints/sdar-tied");
  EXPECT_STREQ(parse(dense).family->name, "sdar");
  EXPECT_EQ(parse(dense).config.attention_block, 4);
  EXPECT_TRUE(parse(dense).config.qk_norm);
  EXPECT_TRUE(parse(dense).config.sparse_layers.empty());
  json plain = dense;
  plain.erase("block_size");
  EXPECT_EQ(parse(plain).config.attention_block, 4) << "the published one";
  EXPECT_THAT(refusal_with(dense, "block_size", 0), HasSubstr("block_size is 0"));
  EXPECT_THAT(refusal_with(dense, "attention_bias", true), HasSubstr("attention_bias"));

  json mixed = config_of("goldens-sdar-moe/checkpoints/sdar-moe-tiny");
  mixed["decoder_sparse_step"] = 2;
  mixed["mlp_only_layers"] = {1};
  const ModelConfig config = parse(mixed).config;
  for (int i = 0; i < config.num_layers; ++i) EXPECT_EQ(config.is_sparse(i), i % 2 == 1 && i != 1);
  EXPECT_THAT(refusal_with(mixed, "mlp_only_layers", {99}), HasSubstr("mlp_only_layers is [99]"));
  EXPECT_THAT(refusal_with(mixed, "mlp_only_layers", 1), HasSubstr("list of integers"));
  EXPECT_THAT(refusal_with(mixed, "num_experts_per_tok", 1000), HasSubstr("num_experts_per_tok"));
}

/// Each would be gone through, or listed, before a tensor is missed: minutes, and gigabytes.
TEST_F(ReferenceConfig, NumbersThatNoModelHasAreRefusedBeforeTheyCost) {
  json mixed = config_of("goldens-sdar-moe/checkpoints/sdar-moe-tiny");
  EXPECT_THAT(refusal_with(mixed, "mlp_only_layers", json(1025, 0)), HasSubstr("at most 1024"));
  EXPECT_THAT(refusal_with(mixed, "eos_token_id", json(1025, 1)), HasSubstr("eos_token_id has"));
  mixed["num_experts"] = 1 << 16;
  EXPECT_THAT(refusal_with(mixed, "num_hidden_layers", 1024), HasSubstr("more than 131072"));
}

TEST_F(ReferenceConfig, LladaMoeIsToldFromLladaByItsExperts) {
  const json config = config_of("goldens-llada-moe/checkpoints/llada-moe-all");
  const ParsedModel model = parse(config);
  EXPECT_STREQ(model.family->name, "llada-moe");
  EXPECT_EQ(model.config.attention_block, 0);
  EXPECT_EQ(model.config.experts.router_bias, RouterBias::kChoiceAndWeight);
  EXPECT_FALSE(model.config.experts.normalized);
  EXPECT_EQ(model.config.clip_qkv, 1.25);
  EXPECT_THAT(refusal_with(config, "moe_layer_freq", {1, 0}),
              AllOf(HasSubstr("moe_layer_freq has 2 entries"), HasSubstr("3")));
  EXPECT_THAT(refusal_with(config, "moe_layer_freq", {1, 0, 2}), HasSubstr("[0, 1]"));
  EXPECT_THAT(refusal_with(config, "dense_intermediate_size", nullptr),
              HasSubstr("dense_intermediate_size"));
  EXPECT_EQ(model.config.experts.num_shared(), 2) << "20 wide, of experts 12 wide";
  EXPECT_THAT(refusal_with(config, "shared_expert_intermediate_size", 12 * 64 + 1),
              AllOf(HasSubstr("shared_expert_intermediate_size is 769"), HasSubstr("768")));
}

TEST_F(ReferenceConfig, Llada2ChoosesExpertsInGroupsAndRotatesAPart) {
  const json config = config_of("goldens-llada2/checkpoints/llada2-tiny");
  const ModelConfig parsed = parse(config).config;
  EXPECT_EQ(parsed.attention_block, 32) << "published files don't say";
  EXPECT_EQ(parsed.rotary_size * 2, parsed.head_size);
  EXPECT_TRUE(parsed.experts.sigmoid);
  EXPECT_EQ(parsed.experts.router_bias, RouterBias::kChoice);
  EXPECT_FALSE(parsed.is_sparse(0));
  EXPECT_TRUE(parsed.is_sparse(1));
  EXPECT_THAT(refusal_with(config, "n_group", 3), HasSubstr("groups must be of one size"));
  EXPECT_THAT(refusal_with(config, "score_function", "softmax"), HasSubstr("score_function"));
  EXPECT_THAT(refusal_with(config, "partial_rotary_factor", 0.01), HasSubstr("even number"));
  EXPECT_THAT(refusal_with(config, "partial_rotary_factor", 2), HasSubstr("partial_rotary_factor"));
}

TEST_F(ReferenceConfig, NamesOfATensorAreUniqueAndFilledIn) {
  for (const char* checkpoint :
       {"goldens-sdar-moe/checkpoints/sdar-moe-mixed",
        "goldens-llada-moe/checkpoints/llada-moe-all", "goldens-llada2/checkpoints/llada2-tiny"}) {
    std::set<std::string> names;
    for (const TensorSpec& spec : list_tensors(parse(config_of(checkpoint)))) {
      EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
      EXPECT_EQ(spec.name.find('{'), std::string::npos) << spec.name;
    }
  }
}

TEST_F(ReferenceConfig, WeightsInOtherQuantisedFormsAreRefusedByName) {
  const json config = tiny_config();
  for (const char* method : {"gptq", "awq", "bitsandbytes", "fp8"}) {
    EXPECT_THAT(refusal_with(config, "quantization_config", {{"quant_method", method}}),
                AllOf(HasSubstr("quantization_config"), HasSubstr(method),
                      HasSubstr("compressed-tensors")));
  }
  EXPECT_THAT(refusal_with(config, "quantization_config",
                           {{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}}),
              HasSubstr("pack-quantized"));
  EXPECT_EQ(refusal_with(config, "quantization_config",
                         {{"quant_method", "compressed-tensors"}, {"format", "float-quantized"}}),
            "");
}

}  // namespace
}  // namespace bicached
