"""The contract of a backbone: one function per promise.

Each function takes a loaded backbone and states the promise in its docstring. It raises
`BrokenPromiseError` with what was expected and what was found, or `NotPromised` where the backbone
does not make the promise. `CHECKS` lists them in order.
"""

from __future__ import annotations

from collections.abc import Callable

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.testing.checks.answers import (
    check_answer_rows,
    check_answers,
    check_answers_see_image_and_prompt,
    check_answers_stop,
    check_conversations,
    check_sampled_answers,
)
from flmm_core.testing.checks.pixels import (
    check_image_features,
    check_image_kinds,
    check_pixels,
    check_shrunk_images,
)
from flmm_core.testing.checks.spec import (
    check_loads_frozen,
    check_spec,
    check_spec_without_torch,
    check_stored_model,
)
from flmm_core.testing.checks.tokens import (
    check_captions_are_answers,
    check_control_words_are_text,
    check_long_captions,
    check_phrase_rows,
    check_prepare_repeats,
    check_prompt,
)
from flmm_core.testing.checks.traces import (
    check_batch_independence,
    check_image_attention,
    check_shared_prefixes,
    check_trace_equals_eager,
    check_trace_options,
    check_trace_shapes,
    check_vlm_stays_unchanged,
)
from flmm_core.testing.checks.views import (
    check_measured_geometry,
    check_repainted_spot,
    check_views_cover_image_tokens,
)

Check = Callable[[Backbone], None]

CHECKS: tuple[Check, ...] = (
    check_spec,
    check_spec_without_torch,
    check_loads_frozen,
    check_stored_model,
    check_views_cover_image_tokens,
    check_measured_geometry,
    check_repainted_spot,
    check_pixels,
    check_image_kinds,
    check_shrunk_images,
    check_image_features,
    check_prepare_repeats,
    check_prompt,
    check_captions_are_answers,
    check_phrase_rows,
    check_control_words_are_text,
    check_long_captions,
    check_trace_shapes,
    check_trace_equals_eager,
    check_image_attention,
    check_trace_options,
    check_batch_independence,
    check_shared_prefixes,
    check_answers,
    check_answers_see_image_and_prompt,
    check_answers_stop,
    check_sampled_answers,
    check_answer_rows,
    check_conversations,
    check_vlm_stays_unchanged,
)
