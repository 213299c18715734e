#pragma once

#include "model/model_config.h"

namespace bicached {

// One a file of this folder; the table is family_table() in model_config.cpp.
ModelFamily a2d_qwen3_family();
ModelFamily dream_family();
ModelFamily llada_family();
ModelFamily llada2_family();
ModelFamily llada_moe_family();
ModelFamily sdar_family();

}  // namespace bicached
