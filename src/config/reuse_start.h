#pragma once

#include <string>

#include "bicached/denoiser.h"
#include "bicached/request.h"

namespace bicached {

/// The usual plan with such an intra-request cache: what a request gets that names only this.
InsidePlan default_plan(IntraCache intra_cache);

/// "intra_cache adaptive, refreshed after 1 text token or 16 forwards from layer 3 on".
std::string describe_plan(const InsidePlan& plan);

/// What a model starts from: what its folder's generation_config.json names (`intra_cache`, with
/// `refresh_interval`, `refresh_commits`, `refresh_depth`), else what is published of a checkpoint
/// of these sizes, else nothing. Throws kInvalidModel naming file and key.
ReuseStart load_reuse_start(const std::string& model_folder, const ModelInfo& model);

}  // namespace bicached
