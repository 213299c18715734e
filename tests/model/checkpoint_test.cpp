#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "bicached/error.h"
#include "model/model_config.h"
#include "model/refusal.h"
#include "model/safetensors.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using namespace bicached::testing;

std::string refusal_of_file(const std::string& bytes) {
  const TempFolder folder;
  folder.write("model.safetensors", bytes);
  return refusal([&] { Checkpoint::open(folder.path()); });
}

std::string refusal_of_header(const std::string& header, size_t data_bytes = 16) {
  return refusal_of_file(safetensors_bytes(header, std::string(data_bytes, 'x')));
}

TEST(Checkpoint, ReadsWhatIsThere) {
  const TempFolder folder;
  folder.write("model.safetensors", safetensors_bytes(R"({"__metadata__":{"format":"pt"},
                 "b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},
                 "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
                 "none":{"dtype":"F16","shape":[0,7],"data_offsets":[12,12]}})",
                                                      "0123456789ab"));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  ASSERT_EQ(checkpoint.tensors().size(), 3u);
  EXPECT_EQ(checkpoint.total_bytes(), 12);
  const StoredTensor& b = checkpoint.tensors().at("b");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(b.file->read_text(b.begin, b.num_bytes), "456789ab");
}

TEST(Checkpoint, RefusesAFileThatIsCutWhileItIsRead) {
  const TempFolder folder;
  const std::string whole = safetensors_bytes(
      R"({"a":{"dtype":"F32","shape":[2048],"data_offsets":[0,8192]}})", std::string(8192, 'x'));
  folder.write("model.safetensors", whole);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  folder.write("model.safetensors", whole.substr(0, 1000));
  EXPECT_THAT(refusal([&] { checkpoint.fingerprint(); }),
              AllOf(HasSubstr("model.safetensors: ends at byte 1000"), HasSubstr("it was cut")));
}

TEST(Checkpoint, FingerprintTellsDataApart) {
  const TempFolder folder;
  const auto fingerprint = [&](const std::string& data) {
    folder.write(
        "model.safetensors",
        safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", data));
    return Checkpoint::open(folder.path()).fingerprint();
  };
  const std::string one = fingerprint("abcd");
  EXPECT_EQ(one, fingerprint("abcd"));
  EXPECT_NE(one, fingerprint("abce"));
}

TEST(Checkpoint, RefusesFilesThatAreNone) {
  EXPECT_THAT(refusal_of_file(""), HasSubstr("empty"));
  EXPECT_THAT(refusal_of_file("1234567"), HasSubstr("shorter"));
  EXPECT_THAT(refusal_of_file(std::string(8, '\xff')), HasSubstr("header size"));
  std::string huge = safetensors_bytes("{}", "");
  huge[4] = 1;  // 4 GiB
  EXPECT_THAT(refusal_of_file(huge), HasSubstr("header size"));
  EXPECT_THAT(refusal_of_file(safetensors_bytes("{\"a\":", "")), HasSubstr("JSON"));
  EXPECT_THAT(refusal_of_file(safetensors_bytes("[]", "")), HasSubstr("object"));
  EXPECT_THAT(refusal_of_file(safetensors_bytes(std::string(100000, '['), "")),
              HasSubstr("deeper"));
}

TEST(Checkpoint, RefusesTensorsThatDoNotFit) {
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return refusal_of_header(R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape +
                             R"(,"data_offsets":)" + offsets + "}}");
  };
  EXPECT_EQ(tensor("F32", "[2,2]", "[0,16]"), "");
  EXPECT_THAT(tensor("F32", "[2,2]", "[0,12]"), AllOf(HasSubstr("'t'"), HasSubstr("need 16")));
  EXPECT_THAT(tensor("F32", "[3,2]", "[0,24]"), HasSubstr("cut short"));
  EXPECT_THAT(tensor("F32", "[2,2]", "[16,0]"), HasSubstr("outside"));
  EXPECT_THAT(tensor("F32", "[2,2]", "[-16,0]"), HasSubstr("outside"));
  EXPECT_THAT(tensor("F32", "[2,2]", "[0,1e30]"), HasSubstr("outside"));
  EXPECT_THAT(tensor("F32", "[-2,-2]", "[0,16]"), HasSubstr("size"));
  EXPECT_THAT(tensor("F32", "[1099511627776,1099511627776]", "[0,16]"), HasSubstr("overflow"));
  EXPECT_THAT(tensor("F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]"), HasSubstr("dimensions"));
  EXPECT_THAT(tensor("I64", "[2]", "[0,16]"), HasSubstr("I64"));
  EXPECT_THAT(tensor("F32", "\"4\"", "[0,16]"), HasSubstr("needs"));
  EXPECT_THAT(tensor("F32", "[4]", "[0]"), HasSubstr("needs"));
  EXPECT_THAT(refusal_of_header(R"({"t":3})"), HasSubstr("needs"));
}

TEST(Checkpoint, RefusesOverlapsGapsAndDuplicates) {
  const auto two = [](const std::string& first, const std::string& second) {
    return refusal_of_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + first +
                                 R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + second +
                                 "}}",
                             24);
  };
  EXPECT_THAT(two("[0,8]", "[4,12]"), HasSubstr("overlap"));
  EXPECT_THAT(two("[0,8]", "[16,24]"), HasSubstr("gap"));
  EXPECT_THAT(two("[8,16]", "[16,24]"), HasSubstr("gap"));
  EXPECT_THAT(two("[0,8]", "[8,16]"), HasSubstr("belong to no tensor"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                                    "a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              HasSubstr("twice"));
}

TEST(Checkpoint, ReadsShardsAndRefusesBadIndices) {
  const TempFolder folder;
  const auto shard = [](const std::string& name) {
    return safetensors_bytes(
        R"({")" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd");
  };
  folder.write("one.safetensors", shard("a"));
  folder.write("two.safetensors", shard("b"));
  const auto index = [&](const std::string& text) {
    folder.write("model.safetensors.index.json", text);
    return refusal([&] { Checkpoint::open(folder.path()); });
  };
  EXPECT_EQ(index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"), "");
  EXPECT_THAT(index(R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})"),
              HasSubstr("'c'"));
  EXPECT_THAT(index(R"({"weight_map":{"a":"/etc/passwd"}})"), HasSubstr("file name"));
  EXPECT_THAT(index(R"({"weight_map":{"a":"../one.safetensors"}})"), HasSubstr("file name"));
  EXPECT_THAT(index(R"({"weight_map":{"a":"three.safetensors"}})"), HasSubstr("three"));
  EXPECT_THAT(index(R"({"weight_map":{"a":".."}})"), HasSubstr("file name"));
  EXPECT_THAT(index(R"({"weight_map":{"a":""}})"), HasSubstr("file name"));
  std::filesystem::create_directory(folder.path() + "/folder.safetensors");
  EXPECT_THAT(index(R"({"weight_map":{"a":"folder.safetensors"}})"), HasSubstr("a folder"));
  std::string many, same;
  for (int i = 0; i < 5000; ++i) {
    many += (i ? "," : "") + ("\"t" + std::to_string(i) + "\":\"s" + std::to_string(i) + "\"");
    same += (i ? "," : "") + ("\"t" + std::to_string(i) + "\":\"one.safetensors\"");
  }
  EXPECT_THAT(index("{\"weight_map\":{" + many + "}}"), HasSubstr("more than 4096 files"));
  EXPECT_THAT(index("{\"weight_map\":{" + same + "}}"), HasSubstr("'t0'"));  // opened once
  EXPECT_THAT(index(R"({})"), HasSubstr("weight_map"));
  EXPECT_THAT(index("{"), HasSubstr("JSON"));
  folder.write("two.safetensors", shard("a"));
  EXPECT_THAT(index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"),
              HasSubstr("another file"));
}

TEST(Checkpoint, NamesWhatAFolderLacks) {
  const TempFolder folder;
  EXPECT_THAT(refusal([&] { Checkpoint::open(folder.path()); }), HasSubstr("model.safetensors"));
  EXPECT_THAT(refusal([&] { Checkpoint::open("/nowhere/at/all"); }), HasSubstr("/nowhere"));
  ASSERT_EQ(::mkfifo((folder.path() + "/model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(refusal([&] { Checkpoint::open(folder.path()); }), HasSubstr("regular"));
}

TEST(Checkpoint, FilesOfOtherKindsAreNamed) {
  EXPECT_THAT(refusal_of_file("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
              HasSubstr("Git LFS"));
  EXPECT_THAT(refusal_of_file("<!DOCTYPE html>"), HasSubstr("web page"));
  EXPECT_THAT(refusal_of_file("PK\x03\x04 and so on"), HasSubstr("PyTorch"));
  EXPECT_THAT(refusal_of_file("GGUF and so on"), HasSubstr("GGUF"));
  const TempFolder folder;
  ASSERT_EQ(::symlink("/dev/zero", (folder.path() + "/model.safetensors").c_str()), 0);
  EXPECT_THAT(refusal([&] { Checkpoint::open(folder.path()); }), HasSubstr("a device"));
  folder.write("config.json", "version https://git-lfs.github.com/spec/v1\n");
  EXPECT_THAT(refusal([&] { parse_model_folder(folder.path()); }), HasSubstr("Git LFS"));
  std::filesystem::remove(folder.path() + "/config.json");
  ASSERT_EQ(::mkfifo((folder.path() + "/config.json").c_str(), 0600), 0);
  EXPECT_THAT(refusal([&] { parse_model_folder(folder.path()); }), HasSubstr("a named pipe"));
}

TEST(TensorNames, WrappersOfTrainingCodeAreLeftOut) {
  for (const char* name :
       {"model.a.b", "_orig_mod.model.a.b", "module.model.a.b", "module._orig_mod.model.a.b",
        "model._fsdp_wrapped_module.a.b", "model.a._checkpoint_wrapped_module.b"}) {
    EXPECT_EQ(plain_tensor_name(name), "model.a.b") << name;
  }
  EXPECT_EQ(plain_tensor_name("modules.a"), "modules.a");
  EXPECT_TRUE(is_derived_tensor("model.layers.3.self_attn.rotary_emb.inv_freq"));
  EXPECT_TRUE(is_derived_tensor("inv_freq"));
  EXPECT_FALSE(is_derived_tensor("model.inv_freq.weight"));
}

/// A checkpoint with these tensors, each of one number.
Checkpoint open_with(const TempFolder& folder, const std::vector<std::string>& names) {
  std::string header, data;
  for (const std::string& name : names) {
    const std::string begin = std::to_string(data.size());
    data += "abcd";
    header += (header.empty() ? "{" : ",") +
              ("\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[1],") + "\"data_offsets\":[" +
              begin + "," + std::to_string(data.size()) + "]}";
  }
  folder.write("model.safetensors", safetensors_bytes(header + "}", data));
  return Checkpoint::open(folder.path());
}

TEST(TensorNames, DerivedTensorsMayBeOfAnyType) {
  EXPECT_EQ(refusal_of_header(
                R"({"a.rotary_emb.inv_freq":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}})"),
            "");
}

TEST(TensorNames, AreFoundInEveryFormThatFilesHave) {
  const TempFolder folder;
  for (const char* form : {"model.x.weight", "x.weight", "model.model.x.weight",
                           "_orig_mod.model.x.weight", "module.x.weight"}) {
    const Checkpoint checkpoint = open_with(folder, {form, "y.rotary_emb.inv_freq"});
    EXPECT_EQ(checkpoint.tensors().size(), 1u) << form;
    EXPECT_TRUE(checkpoint.tensors().contains(checkpoint.stored_name("model.x.weight"))) << form;
  }
  const Checkpoint head = open_with(folder, {"model.lm_head.weight"});
  EXPECT_EQ(head.stored_name("lm_head.weight"), "model.lm_head.weight");
  const Checkpoint other = open_with(folder, {"bert.x.weight", "z.bias"});
  EXPECT_THAT(refusal([&] { other.stored_name("model.x.weight"); }), HasSubstr("'bert.x.weight'"));
  EXPECT_THAT(refusal([&] { open_with(folder, {"module.a", "_orig_mod.a"}); }), HasSubstr("two"));
}

class LladaConfig : public ::testing::Test {
 protected:
  std::string refusal_with(const std::string& key, const json& value) {
    json config = tiny_config();
    if (value.is_discarded()) {
      config.erase(key);
    } else {
      config[key] = value;
    }
    folder_.write("config.json", config.dump());
    return refusal([&] { parse_model_folder(folder_.path()); });
  }
  ModelConfig parse(const json& config) {
    folder_.write("config.json", config.dump());
    return parse_model_folder(folder_.path()).config;
  }
  TempFolder folder_;
};

TEST_F(LladaConfig, ReadsEveryNumber) {
  const ModelConfig config = parse(tiny_config());
  EXPECT_EQ(config.num_layers, 5);
  EXPECT_EQ(config.hidden_size, 32);
  EXPECT_EQ(config.num_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_size, 8);
  EXPECT_EQ(config.mlp_size, 48);
  EXPECT_EQ(config.vocab_size, 60);
  EXPECT_EQ(config.num_logits, 64);
  EXPECT_EQ(config.max_length, 128);
  EXPECT_EQ(config.mask_token, 57);
  EXPECT_TRUE(config.tied_head);
  EXPECT_EQ(config.end_tokens, (std::vector<TokenId>{55}));
}

TEST_F(LladaConfig, FillsInWhatOlderFilesLeaveOut) {
  json config = tiny_config();
  for (const char* key : {"mlp_hidden_size", "n_kv_heads", "embedding_size", "weight_tying"}) {
    config.erase(key);
  }
  config["mlp_ratio"] = 3;
  const ModelConfig parsed = parse(config);
  EXPECT_EQ(parsed.mlp_size, 96);
  EXPECT_EQ(parsed.num_kv_heads, 4);
  EXPECT_EQ(parsed.num_logits, 60);
  EXPECT_FALSE(parsed.tied_head);
}

TEST_F(LladaConfig, TakesEndTokensOfAllFiles) {
  folder_.write("generation_config.json", R"({"eos_token_id":[55,54,9999,-1,"x"]})");
  folder_.write("tokenizer_config.json",
                R"({"added_tokens_decoder":{"53":{"content":"<|eot_id|>"},
                    "52":{"content":"other"},"x":{"content":"<|eot_id|>"},"51":7}})");
  EXPECT_EQ(parse(tiny_config()).end_tokens, (std::vector<TokenId>{55, 54, 53}));
}

TEST_F(LladaConfig, NamesKeyAndSupportedValue) {
  EXPECT_EQ(refusal_with("rope_theta", 500000.0), "");
  EXPECT_THAT(refusal_with("block_type", "sequential"),
              AllOf(HasSubstr("config.json"), HasSubstr("block_type"), HasSubstr("llama")));
  EXPECT_THAT(refusal_with("layer_norm_type", "default"), HasSubstr("rms"));
  EXPECT_THAT(refusal_with("activation_type", "gelu"), HasSubstr("silu"));
  for (const char* off : {"alibi", "attention_layer_norm", "bias_for_layer_norm", "include_bias",
                          "include_qkv_bias", "input_emb_norm", "scale_logits"}) {
    EXPECT_THAT(refusal_with(off, true), AllOf(HasSubstr(off), HasSubstr("false")));
  }
  EXPECT_THAT(refusal_with("rope", false), HasSubstr("rope"));
  EXPECT_THAT(refusal_with("model_type", "llama"), HasSubstr("llada"));
}

TEST_F(LladaConfig, RefusesNumbersOutOfRange) {
  const json missing(json::value_t::discarded);
  for (const char* key : {"n_layers", "d_model", "n_heads", "vocab_size", "max_sequence_length",
                          "mask_token_id", "rope_theta", "rms_norm_eps"}) {
    EXPECT_THAT(refusal_with(key, missing), AllOf(HasSubstr(key), HasSubstr("missing"))) << key;
    EXPECT_THAT(refusal_with(key, "12"), HasSubstr(key));
    EXPECT_THAT(refusal_with(key, -1), HasSubstr(key));
    EXPECT_THAT(refusal_with(key, 1e300), HasSubstr(key));
  }
  EXPECT_THAT(refusal_with("d_model", 33), HasSubstr("d_model"));
  EXPECT_THAT(refusal_with("n_kv_heads", 3), HasSubstr("n_kv_heads"));
  EXPECT_THAT(refusal_with("mask_token_id", 64), HasSubstr("mask_token_id"));
  EXPECT_THAT(refusal_with("embedding_size", 59), HasSubstr("embedding_size"));
  EXPECT_THAT(refusal_with("weight_tying", 1), HasSubstr("weight_tying"));
}

TEST_F(LladaConfig, RefusesFilesThatAreNoConfig) {
  const auto refusal_of = [&](const std::string& text) {
    folder_.write("config.json", text);
    return refusal([&] { parse_model_folder(folder_.path()); });
  };
  EXPECT_THAT(refusal_of("{"), HasSubstr("JSON"));
  EXPECT_THAT(refusal_of("[]"), HasSubstr("object"));
  EXPECT_THAT(refusal_of("{\"a\":" + std::string(100000, '[')), HasSubstr("deeper"));
  EXPECT_THAT(refusal_of("{}"), HasSubstr("model_type"));
  const TempFolder empty;
  EXPECT_THAT(refusal([&] { parse_model_folder(empty.path()); }), HasSubstr("config.json"));
}

}  // namespace
}  // namespace bicached
