// What clients, routers and operators ask about the server and its model.
#include "base/version.h"
#include "config/settings_io.h"
#include "http/api.h"

namespace bicached {

/// Balancers look here unless they are told otherwise.
HttpReply Api::root(const HttpRequest&) {
  return json_reply({{"name", "bicached"}, {"version", version()}});
}

HttpReply Api::version_info(const HttpRequest&) {
  OrderedJson body;
  body["name"] = "bicached";
  body["version"] = version();
  body["build"] = compiler();
  return json_reply(body);
}

HttpReply Api::config(const HttpRequest&) {
  OrderedJson body = OrderedJson::parse(settings_to_json(settings_));
  body.erase("api_key_file");
  body.erase("admin_key_file");
  body["api_key_required"] = needs_key();
  return json_reply(body);
}

// --- As other servers are asked ---------------------------------------------------------------

/// llama-server's.
HttpReply Api::props(const HttpRequest&) {
  const Backend& loaded = backend();
  const ModelInfo& model = loaded.engine->model();
  const auto token = [&](TokenId id) {
    return id < 0 ? std::string() : loaded.tokenizer->token_text(id);
  };
  OrderedJson params;
  params["n_predict"] = loaded.defaults.max_tokens;
  params["temperature"] = loaded.defaults.temperature;
  params["top_p"] = loaded.defaults.top_p;
  params["top_k"] = loaded.defaults.top_k;
  params["min_p"] = loaded.defaults.min_p;
  OrderedJson body;
  body["default_generation_settings"]["n_ctx"] = model.max_length;
  body["default_generation_settings"]["params"] = std::move(params);
  body["total_slots"] = settings_.engine.max_running;
  body["model_alias"] = loaded.model_id;
  body["model_path"] = loaded.model_id;
  body["modalities"] = {{"vision", false}, {"audio", false}};
  body["bos_token"] = token(model.start_token);
  body["eos_token"] = token(model.end_tokens.empty() ? -1 : model.end_tokens.front());
  body["build_info"] = std::string("bicached-") + version();
  return json_reply(body);
}

/// llama-server's: how many of the places for canvases are taken.
HttpReply Api::slots(const HttpRequest&) {
  const Backend& loaded = backend();
  const int64_t running = loaded.engine->stats().running;
  OrderedJson body = OrderedJson::array();
  for (int i = 0; i < settings_.engine.max_running; ++i) {
    body.push_back(
        {{"id", i}, {"n_ctx", loaded.engine->model().max_length}, {"is_processing", i < running}});
  }
  return json_reply(body);
}

/// SGLang's; its router names the model after it.
HttpReply Api::model_info(const HttpRequest&) {
  const Backend& loaded = backend();
  OrderedJson body;
  body["model_path"] = loaded.model_id;
  body["tokenizer_path"] = loaded.model_id;
  body["served_model_name"] = loaded.model_id;
  body["model_type"] = loaded.engine->model().family;
  body["is_generation"] = true;
  body["preferred_sampling_params"] = nullptr;
  body["max_context_length"] = loaded.engine->model().max_length;
  return json_reply(body);
}

HttpReply Api::server_info(const HttpRequest&) {
  const Backend& loaded = backend();
  OrderedJson body;
  body["model_path"] = loaded.model_id;
  body["served_model_name"] = loaded.model_id;
  body["version"] = version();
  body["max_total_num_tokens"] = loaded.engine->stats().slab_tokens_capacity.load();
  body["max_running_requests"] = settings_.engine.max_running;
  body["context_length"] = loaded.engine->model().max_length;
  body["tp_size"] = 1;
  body["dp_size"] = 1;
  return json_reply(body);
}

// --- Models ------------------------------------------------------------------------------------

OrderedJson Api::describe_model(const std::string& id) const {
  const ModelInfo& model = backend().engine->model();
  OrderedJson body;
  body["id"] = id;
  body["object"] = "model";
  body["created"] = created_;
  body["owned_by"] = "bicached";
  body["root"] = backend().model_id;
  body["parent"] = nullptr;
  body["max_model_len"] = model.max_length;
  body["meta"] = {{"n_ctx_train", model.max_length},
                  {"n_vocab", model.vocab_size},
                  {"n_embd", model.hidden_size},
                  {"n_params", model.num_parameters},
                  {"size", model.weight_bytes}};
  return body;
}

HttpReply Api::models(const HttpRequest&) {
  const Backend& loaded = backend();
  OrderedJson body;
  body["object"] = "list";
  body["data"] = OrderedJson::array({describe_model(loaded.model_id)});
  for (const std::string& alias : settings_.server.alias) {
    if (alias != "*" && alias != loaded.model_id) body["data"].push_back(describe_model(alias));
  }
  return json_reply(body);
}

HttpReply Api::model(const HttpRequest& request) {
  const std::string name = request.path.substr(kModelPrefix.size());
  check_model_name(name, codec());
  return json_reply(describe_model(name));
}

}  // namespace bicached
