#pragma once

#include "http/exchange.h"
#include "http/generate.h"
#include "http/job.h"

namespace bicached {

/// Fills `job.prompt_scores` where the job asks for log-probabilities of its prompts: of each token
/// the model's, with that position masked and all other tokens of the prompt in sight, of both
/// sides. That costs a forward of the whole prompt for every token. What the server generates and a
/// suffix take no part. A position that has no logits (the first one, where a family's logits are
/// those of the next position) gets no number.
///
/// Waits here. False: the client is gone. Throws as `run_job`.
bool score_prompts(Job& job, const HttpRequest& request, const GenerateContext& context);

}  // namespace bicached
