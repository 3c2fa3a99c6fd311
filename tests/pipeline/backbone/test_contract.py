"""What a plugin may leave out or say otherwise, against transformers' own classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken

from flmm_core import (
    Backbone,
    DataError,
    ImageView,
    Requirements,
    RunError,
    UsageError,
    WeightsError,
)
from flmm_core.pipeline.backbone.conversation import control_strings
from flmm_core.pipeline.backbone.processor_check import check_processor
from flmm_core.segment import Segment
from tests.examples import example
from tests.models import CAPTIONS, OneView, TwoViews, build, kind, parts, picture, spec

TEMPLATE = "{% for m in messages %}{% for p in m['content'] %}{{ p.text or '<image>' }}{% endfor %}"


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example("gemma3").make_tiny(tmp_path_factory.mktemp("gemma3"))


class Nothing(Backbone):
    """A plugin that declares only what it loads."""

    model_types = ("gemma3", "qwen2_5_vl")


class TestLoading:
    def test_auto_classes_load_and_the_geometry_is_measured(self, random_twin: Path) -> None:
        backbone = Nothing.load(spec(), str(random_twin))
        assert isinstance(backbone.vlm, transformers.Qwen2_5_VLForConditionalGeneration)
        assert backbone.view_names == ("image",)
        inputs = backbone.prepare(picture(200, 90), CAPTIONS[0])
        h, w = (int(side) // 2 for side in inputs.tensors["image_grid_thw"][0, 1:])
        assert inputs.views[0].token_index.shape == (h, w)

    def test_weights_that_are_missing_are_named(self, random_twin: Path, tmp_path: Path) -> None:
        for path in random_twin.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
        weights = {name: v.contiguous() for name, v in weights.items() if "o_proj" not in name}
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match="of the model's tensors are missing"):
            Nothing.load(spec(), str(tmp_path))

    def test_a_model_without_images(self, tmp_path: Path) -> None:
        transformers.LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)

        class Anything(Backbone):
            pass

        with pytest.raises(WeightsError) as error:
            Anything.load(spec(), str(tmp_path))
        assert "transformers has no image-text-to-text model of the type 'llama'" in str(
            error.value
        )


class TestImageToken:
    def test_it_is_the_one_that_the_model_replaces(self, gemma3: Path) -> None:
        backbone = Nothing.load(spec(), str(gemma3))
        assert backbone.processor.image_token == "<start_of_image>"
        assert backbone.image_token == "<image_soft_token>"
        assert backbone.image_token_id == backbone.config.image_token_id
        assert int(backbone.vision_token_mask(backbone.prepare(picture(40, 30), [])).sum()) == 36

    def test_a_plugin_may_name_it_where_the_config_does_not(self) -> None:
        _, processor = parts("deepseek_vl")
        silent = transformers.LlamaConfig()
        named = check_processor(processor, silent, "here", "<image_placeholder>", "")
        assert named == ("<image_placeholder>", processor.tokenizer.get_vocab()[named[0]])

    def test_another_than_the_models_is_refused(self) -> None:
        backbone = build("deepseek_vl")
        named = type("Named", (OneView,), {"image_token": "<|pad|>"})
        with pytest.raises(WeightsError, match=r"Its image token '<\|pad\|>' has id 0"):
            named(spec(), backbone.vlm, backbone.processor)


class TestTemplates:
    def again(self, template: Any = None, **requirements: Any) -> OneView:
        backbone = build("deepseek_vl")
        backbone.processor.chat_template, backbone.tokenizer.chat_template = template, None
        asked = dataclasses.replace(spec(), requirements=Requirements(**requirements))
        return OneView(asked, backbone.vlm, backbone.processor, source="here")

    def test_a_family_without_one_declares_it(self) -> None:
        own = parts("deepseek_vl")[1].chat_template
        assert "ASSISTANT" in self.again(chat_template=own).rendered_prompt()

    def test_one_that_shows_no_image_is_refused(self) -> None:
        template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
        with pytest.raises(WeightsError, match="Its chat template shows no image"):
            self.again(template=template)

    def test_one_that_cannot_be_rendered_is_refused(self) -> None:
        with pytest.raises(WeightsError, match="cannot show a question about an image"):
            self.again(template=TEMPLATE)


class Small(TwoViews):
    """Without its large grid where the image is a square."""

    def views(self, *given: Any) -> tuple[ImageView, ...]:
        views = super().views(*given)
        return views if given[1][0] != given[1][1] else views[:1]

    def separator_tokens(self, views: Any) -> int:
        if views[0].token_index is not views[1].token_index:
            return super().separator_tokens(views)
        return 6 * 7  # the large grid and its line ends


class TestViews:
    def kinds(self, requirements: Requirements) -> Small:
        config, processor = parts("llava_next")
        vlm = transformers.AutoModelForImageTextToText.from_config(config)
        return Small(dataclasses.replace(spec(), requirements=requirements), vlm, processor)

    def test_the_first_stands_for_one_that_an_image_is_without(self) -> None:
        backbone = self.kinds(Requirements(optional_views=frozenset({"fine"})))
        inputs = [backbone.prepare(picture(*wh), CAPTIONS[0]) for wh in ((48, 48), (24, 48))]
        assert [[v.name for v in each.views] for each in inputs] == [["coarse", "fine"]] * 2
        coarse, fine = inputs[0].views
        assert torch.equal(coarse.token_index, fine.token_index)
        traces = backbone.trace(backbone.collate(inputs))
        first, second = traces[0].attention.chunk(2, dim=-1)
        assert torch.equal(first, second)
        (alone,) = backbone.trace(backbone.collate(inputs[:1]))
        torch.testing.assert_close(alone.attention, traces[0].attention, atol=1e-6, rtol=1e-4)

    def test_a_view_that_is_not_optional_may_not_be_missing(self) -> None:
        backbone = self.kinds(Requirements())
        with pytest.raises(RunError) as error:
            backbone.prepare(picture(48, 48), CAPTIONS[0], name="boat")
        asked, found, repair = str(error.value).splitlines()
        assert asked.startswith("Sample 'boat': The plugin's own code fails: tests.pipeline.")
        assert found == "ValueError: the views are ('coarse',); expected ('coarse', 'fine')"
        assert repair.startswith("Report it to the plugin's author")

    def test_their_names_may_come_from_the_config(self) -> None:
        class ByConfig(OneView):
            @property
            def view_names(self) -> tuple[str, ...]:
                return (f"of {self.config.vision_config.image_size}",)

            def views(self, *given: Any) -> tuple[ImageView, ...]:
                return (dataclasses.replace(super().views(*given)[0], name=self.view_names[0]),)

        backbone = build("deepseek_vl")
        loaded = ByConfig(spec(), backbone.vlm, backbone.processor)
        assert loaded.prepare(picture(40, 40), CAPTIONS[0]).views[0].name == "of 32"

    def test_line_ends_can_be_said_with_the_view(self) -> None:
        class Said(TwoViews):
            def views(self, *given: Any) -> tuple[ImageView, ...]:
                coarse, fine = super().views(*given)
                return coarse, dataclasses.replace(fine, separators=len(fine.token_index))

            separator_tokens = Backbone.separator_tokens

        config, processor = parts("llava_next")
        vlm = transformers.AutoModelForImageTextToText.from_config(config)
        Said(spec(), vlm, processor).prepare(picture(48, 48), CAPTIONS[0])


@pytest.mark.parametrize("method", ["views", "shrunk", "separator_tokens"])
def test_a_plugins_own_error_names_the_plugin(method: str) -> None:
    def fails(self: Any, *given: Any) -> Any:
        raise ValueError("nothing of the image")

    backbone = build("deepseek_vl")
    broken = type("Broken", (OneView,), {method: fails})
    loaded = broken(spec(), backbone.vlm, backbone.processor)
    with pytest.raises(RunError) as error:
        loaded.prepare(picture(40, 40), [Segment("a", 0)], name="boat")
    assert (
        "The plugin's own code fails: tests.pipeline.backbone.test_contract:" in error.value.asked
    )
    assert error.value.found == "ValueError: nothing of the image"


def test_a_plugins_opinion_of_an_image_is_not_an_error_of_it() -> None:
    def thin(self: Any, *given: Any) -> Any:
        raise DataError("the image is too thin.")

    backbone = build("deepseek_vl")
    loaded = type("Thin", (OneView,), {"views": thin})(spec(), backbone.vlm, backbone.processor)
    with pytest.raises(DataError, match="Sample 'boat': the image is too thin"):
        loaded.prepare(picture(40, 40), [Segment("a", 0)], name="boat")


def test_requirements_say_what_the_config_says() -> None:
    for family, windowed in (("llava_next", False), ("llava_next_window", True)):
        config, processor = parts(family)
        vlm = transformers.AutoModelForImageTextToText.from_config(config)
        assert kind(family)(spec(), vlm, processor).requirements.sliding_window is windowed


def test_a_decoder_that_cannot_be_recorded_is_refused_before_its_weights_are_read(
    tmp_path: Path,
) -> None:
    """One whose layers are built otherwise, as GPT-NeoX's are."""
    config, processor = parts("llava_next")
    text = transformers.GPTNeoXConfig(vocab_size=300, hidden_size=32, num_attention_heads=4)
    config.text_config = text
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="The attention of this model cannot be recorded"):
        type("Any", (Nothing,), {"model_types": ()}).load(spec(), str(tmp_path))


def test_a_token_may_be_more_than_a_string() -> None:
    """InstructBLIP's processor holds it as an `AddedToken`; a user's text cannot contain it."""
    token = AddedToken("<image>", normalized=False, special=True)
    words = build("llava_next").processor.tokenizer
    pixels = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer)
    processor = transformers.InstructBlipProcessor(pixels, plain, plain, num_query_tokens=4)
    assert type(processor.image_token) is type(token)
    config = transformers.InstructBlipConfig(
        image_token_index=plain.convert_tokens_to_ids("<image>")
    )
    found = check_processor(processor, config, "here", "", TEMPLATE + "{% endfor %}")
    assert found == ("<image>", config.image_token_index)
    assert "<image>" in control_strings(processor)


def test_a_processor_that_writes_after_the_prompt_needs_a_text_apart(tmp_path: Path) -> None:
    """PaliGemma's ends every prompt with a line end: a caption would stand before it."""
    folder = example("paligemma").make_tiny(tmp_path / "tiny")
    plain = dataclasses.replace(
        spec(), requirements=Requirements(chat_template=TEMPLATE + "{% endfor %}")
    )
    family = type("Any", (Nothing,), {"model_types": ()})
    with pytest.raises(WeightsError, match="writes something between the prompt and the answer"):
        family.load(plain, str(folder)).prepare(picture(40, 40), CAPTIONS[0])
