#pragma once

#include "bicached/denoiser.h"
#include "bicached/settings.h"

namespace bicached {

/// Fills what `settings` leaves open (0) with what suits the model on its device.
///
/// `max_running`: on a card as many canvases as their blocks fill it with, 512 rows, of 16 to 128.
/// More would only make each of them wait longer, fewer leave the card waiting for its memory.
/// `max_rows_per_forward`: on a card up to 16384, within a 32nd of its memory. The more rows, the
/// better its multiplying units are used (DESIGN 10), and what runs meanwhile waits longer.
EngineSettings resolve_engine_defaults(EngineSettings settings, const ModelInfo& model);

}  // namespace bicached
