"""PaliGemma as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from flmm_core import BackboneSpec, ModelInfo, Requirements, hookimpl

API_VERSION = 1  # of flmm's plugin API, for which this is written

TEMPLATE = (  # the models come without one; their processor adds the start token and a line end
    "{% if messages | length > 1 %}{{ raise_exception('It answers one question') }}{% endif %}"
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)

SPEC = BackboneSpec(
    name="paligemma",
    target="flmm_paligemma.backbone:PaliGemmaBackbone",
    summary="PaliGemma and PaliGemma 2: one view, the image squeezed into a square",
    models={
        "tiny": ModelInfo("flmm_paligemma:tiny", "Apache-2.0", "random weights, for the tests"),
        "3b": ModelInfo("google/paligemma2-3b-mix-448", "Gemma"),
    },
    capabilities=frozenset({"chat"}),
    requirements=Requirements(bidirectional_prefix=True, chat_template=TEMPLATE),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
