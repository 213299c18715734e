#pragma once

#include "http/answer_writer.h"
#include "http/exchange.h"

namespace bicached {

inline HttpReply json_reply(const OrderedJson& json) {
  HttpReply reply;
  reply.body = dump_json(json);
  return reply;
}

}  // namespace bicached
