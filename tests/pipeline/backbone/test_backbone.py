"""The backbone's shared parts, on the real transformers classes at toy width."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import normalizers

from flmm_core.errors import DataError, UsageError
from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.backbone.conversation import escape
from flmm_core.segment import Segment
from tests.models import FAMILIES, HEADS, HIDDEN, LAYERS, build, picture, samples

shared = functools.cache(build)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Any:
    return shared(request.param)


def test_the_sizes_are_the_language_models(backbone: Any) -> None:
    views = len(backbone.view_names)
    assert (backbone.num_layers, backbone.num_heads) == (LAYERS, HEADS)
    assert backbone.hidden_size == HIDDEN
    assert backbone.attention_channels == views * LAYERS * HEADS


def test_the_vlm_is_frozen(backbone: Any) -> None:
    assert not backbone.vlm.training
    assert not any(p.requires_grad for p in backbone.vlm.parameters())


class TestPrepare:
    def test_the_caption_follows_the_prompt_piece_by_piece(self, backbone: Any) -> None:
        sample = samples(backbone)[0]
        ids = sample.tensors["input_ids"]
        read = [backbone.tokenizer.decode(ids[rows]) for rows in sample.phrase_rows]
        assert read == ["a red ring", "it"]
        assert backbone.tokenizer.decode(sample.caption) == "a red ring left of it"
        assert backbone.prompt in backbone.tokenizer.decode(sample.prefix.tokens["input_ids"])
        assert ids.tolist().count(backbone.tokenizer.bos_token_id) == 1

    def test_the_prompt_is_an_argument(self, backbone: Any) -> None:
        def prompt_text(**given: str) -> str:
            sample = backbone.prepare(picture(48, 48), [Segment("it", 0)], **given)
            return backbone.tokenizer.decode(sample.prefix.tokens["input_ids"])

        own, other = prompt_text(), prompt_text(prompt="Where is it?")
        assert other == own.replace(backbone.prompt, "Where is it?") != own
        assert backbone.prompt not in prompt_text(prompt="")

    def test_every_token_has_its_attributes(self, backbone: Any) -> None:
        tensors = samples(backbone)[0].tensors
        length = len(tensors["input_ids"])
        assert tensors["attention_mask"].tolist() == [1] * length
        if "mm_token_type_ids" in tensors:
            is_image = tensors["input_ids"] == backbone.image_token_id
            assert torch.equal(tensors["mm_token_type_ids"] == 1, is_image)

    def test_a_phrase_may_come_in_several_pieces(self, backbone: Any) -> None:
        pieces = [Segment("the ", 0), Segment("x"), Segment("dog", 0)]
        sample = backbone.prepare(picture(48, 48), pieces)
        start = len(sample.prefix)
        assert sample.phrase_rows[0].tolist() == [
            *range(start, start + 3),  # "the"; the space after it is none of the words
            *range(start + 5, start + 8),
        ]

    def test_image_tokens_are_where_the_views_say(self, backbone: Any) -> None:
        sample = samples(backbone)[1]
        mask = backbone.vision_token_mask(sample)
        cells = torch.cat([view.token_index.flatten() for view in sample.views])
        assert mask[cells].all()
        assert int(mask.sum()) == len(cells) + backbone.separator_tokens(sample.views)

    def test_it_needs_no_weights_and_no_luck(self, backbone: Any) -> None:
        sent = pickle.loads(pickle.dumps(backbone))
        assert sent.vlm is None
        for here, there in zip(samples(backbone), samples(sent), strict=True):
            for key, value in here.tensors.items():
                assert torch.equal(value, there.tensors[key])
            assert pickle.loads(pickle.dumps(here)).image_hw == here.image_hw

    def test_a_caption_without_phrases(self, backbone: Any) -> None:
        sample = backbone.prepare(picture(48, 48), [Segment("words only")])
        (trace,) = backbone.trace(backbone.collate([sample]))
        assert trace.attention.shape[:3] == (LAYERS, HEADS, 0)


class TestControlStrings:
    def test_they_are_never_expanded(self, backbone: Any) -> None:
        strings = [*backbone.tokenizer.all_special_tokens, *backbone.tokenizer.get_added_vocab()]
        assert backbone.processor.image_token in strings
        plain = backbone.prepare(picture(48, 48), [Segment("a dog", 0)])
        for string in strings:
            sample = backbone.prepare(picture(48, 48), [Segment(f"a {string} dog", 0)])
            assert not set(sample.caption.tolist()) & set(backbone.tokenizer.all_special_ids)
            assert torch.equal(
                backbone.vision_token_mask(sample)[: len(plain.prefix)],
                backbone.vision_token_mask(plain)[: len(plain.prefix)],
            )

    def test_nor_in_the_prompt(self, backbone: Any) -> None:
        count = int(backbone.vision_token_mask(backbone.prepare(picture(48, 48), [])).sum())
        for string in ("<image>", "<|image_pad|>", "<image_placeholder>", "<|eos|>"):
            prompt = f"What is {string}?{string}"
            sample = backbone.prepare(picture(48, 48), [Segment("a dog", 0)], prompt=prompt)
            assert int(backbone.vision_token_mask(sample).sum()) == count
            assert backbone.tokenizer.eos_token_id not in sample.tensors["input_ids"]

    def test_they_stay_readable(self) -> None:
        assert escape("see <image><image>", ["<image>"]) == "see < image>< image>"
        assert escape("nothing here", ["<image>"]) == "nothing here"


class TestPrepareErrors:
    def message(self, kind: type[Exception], *segments: Segment, image: Any = None) -> str:
        backbone = shared("deepseek_vl")
        with pytest.raises(kind) as error:
            backbone.prepare(image or picture(48, 48), segments, name="boat")
        return str(error.value)

    @pytest.mark.parametrize("text", ["", "  "])
    def test_an_empty_phrase(self, text: str) -> None:
        found = self.message(UsageError, Segment("a", 0), Segment(text, 1))
        assert found.startswith(f"Phrase 1 of sample 'boat' is empty.\nIts text is {text!r}, of ")

    def test_a_phrase_without_tokens(self) -> None:
        for mode in ("whole", "pieces"):
            backbone = build("deepseek_vl", caption_mode=mode)
            core = backbone.tokenizer.backend_tokenizer
            core.normalizer = normalizers.Replace("\u200b", "")  # as some models do
            with pytest.raises(UsageError, match="Phrase 0 of sample 'boat' has no tok") as error:
                backbone.prepare(picture(48, 48), [Segment("\u200b", 0)], name="boat")
            assert "of 0 tokens" in error.value.found

    def test_numbers_with_gaps(self) -> None:
        assert self.message(UsageError, Segment("a", 0), Segment("b", 2)) == (
            "The phrases of sample 'boat' are not numbered from 0 without gaps.\n"
            "Found the numbers [0, 2].\n"
            "Number them 0 to 1."
        )

    def test_a_phrase_beyond_the_limit(self) -> None:
        found = self.message(UsageError, Segment("x" * 600), Segment("the dog", 0))
        length = len(shared("deepseek_vl").prepare(picture(48, 48), []))
        assert found == (
            "Phrase 0 ('the dog') of sample 'boat' is cut off.\n"
            f"It ends at token {length + 607}; the model's limit is 512.\n"
            "Shorten the caption, or split it into several samples."
        )

    def test_words_after_the_last_phrase_may_go(self) -> None:
        backbone = shared("qwen")
        long = [Segment("the dog", 0), Segment("x" * 600)]
        cut = backbone.prepare(picture(48, 48), long)
        assert {len(v) for v in cut.tensors.values() if v.ndim == 1} == {512}
        short = backbone.prepare(picture(48, 48), long[:1])
        one, other = (backbone.trace(backbone.collate([s]))[0] for s in (cut, short))
        torch.testing.assert_close(one.attention, other.attention, atol=1e-5, rtol=0)

    def test_a_prompt_beyond_the_limit(self) -> None:
        backbone, caption = shared("deepseek_vl"), [Segment("a", 0)]
        with pytest.raises(UsageError, match="The prompt of sample 'boat' is longer than"):
            backbone.prepare(picture(48, 48), caption, prompt="x" * 600, name="boat")

    def test_no_image(self) -> None:
        found = self.message(UsageError, Segment("a", 0), image="photo.jpg")
        assert found.startswith("Sample 'boat' has no image.\nFound str; expected a PIL image.")

    def test_an_image_without_pixels(self) -> None:
        found = self.message(DataError, Segment("a", 0), image=Image.new("RGB", (0, 7)))
        assert found.startswith(
            "The image of sample 'boat' has no pixels.\nIts size is 0 x 7 pixels."
        )

    def test_an_image_that_the_processor_refuses(self) -> None:
        with pytest.raises(DataError, match="rejects the image of sample 'boat'") as error:
            shared("qwen").prepare(picture(4000, 4), [Segment("a", 0)], name="boat")
        assert "Its size is 4000 x 4 pixels" in error.value.found

    def test_a_grid_of_another_size(self) -> None:
        backbone = build("deepseek_vl")
        backbone.processor.num_image_tokens = 15
        with pytest.raises(DataError) as error:
            backbone.prepare(picture(48, 48), [Segment("a", 0)], name="boat")
        assert str(error.value) == (
            "Sample 'boat': the image tokens do not fit the grid of the image.\n"
            "The sequence holds 15 image tokens; expected 16.\n"
            "Use the processor that belongs to these weights; if it does, the geometry of the "
            "plugin (tests.models:OneView) is wrong."
        )

    def test_cells_that_are_no_image_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone = shared("llava_next")
        monkeypatch.setattr(type(backbone), "separator_tokens", lambda self, views: 0)
        with pytest.raises(DataError, match="Sample 'boat'") as error:
            backbone.prepare(picture(48, 48), [Segment("a", 0)], name="boat")
        assert error.value.found == (
            "The sequence holds 51 image tokens; the grid (coarse 3x3, fine 6x6, 0 separators) "
            "needs 45, for an image of 48 x 48 pixels."
        )


class TestTrace:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_a_sample_does_not_depend_on_its_companions(self, backbone: Any, side: Any) -> None:
        both = samples(backbone)
        together = backbone.trace(backbone.collate(both, side=side))
        for sample, found in zip(both, together, strict=True):
            (alone,) = backbone.trace(backbone.collate([sample]))
            torch.testing.assert_close(found.attention, alone.attention, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.hidden, alone.hidden, atol=1e-4, rtol=0)

    def test_its_shapes_and_rows(self, backbone: Any) -> None:
        sample = samples(backbone)[0]
        (trace,) = backbone.trace(backbone.collate([sample]))
        cells = sum(view.token_index.numel() for view in sample.views)
        assert trace.attention.shape == (LAYERS, HEADS, 2, cells)
        assert trace.attention.dtype == trace.hidden.dtype == torch.float32
        assert trace.row_phrase.tolist() == [0] * 10 + [1] * 2
        assert trace.hidden.shape == (LAYERS, 12, HIDDEN)
        assert (trace.image_hw, trace.views) == (sample.image_hw, sample.views)

    def test_rows_can_feed_a_trained_head(self) -> None:
        backbone = shared("deepseek_vl")
        (trace,) = backbone.trace(backbone.collate(samples(backbone)[:1]))
        head = torch.nn.Linear(HIDDEN, 1)
        head(trace.hidden).sum().backward()  # tensors of inference mode would refuse

    def test_conversation_in_between_changes_nothing(self, backbone: Any) -> None:
        """Some models keep positions from one call to the next."""
        batch = backbone.collate(samples(backbone))
        before = backbone.trace(batch)
        answer = backbone.generate(picture(48, 24), "What is it?", max_new_tokens=4)
        after = backbone.trace(batch)
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one.attention, other.attention)
        fresh = build(next(f for f in FAMILIES if shared(f) is backbone))
        assert fresh.generate(picture(48, 24), "What is it?", max_new_tokens=4) == answer

    def test_half_precision_gives_single(self) -> None:
        backbone = build("qwen", dtype=torch.bfloat16)
        for trace in backbone.trace(backbone.collate(samples(backbone))):
            assert trace.attention.dtype == torch.float32
            assert torch.isfinite(trace.attention).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_of_any_mode_is_read_as_upright_rgb(family: str) -> None:
    """A caller of `prepare` gets what `Grounder.ground` makes of the same image."""
    backbone, rgb = shared(family), picture(48, 24)
    clear, stored = Image.new("RGBA", rgb.size, (0, 0, 0, 0)), rgb.transpose(Image.ROTATE_90)
    stored.getexif()[0x0112] = 6  # to be turned by 270 degrees
    for given, seen in (
        (clear, Image.new("RGB", rgb.size, "white")),
        (clear.quantize(2), Image.new("RGB", rgb.size, "white")),
        (Image.new("I;16", rgb.size, 257 * 77), Image.new("RGB", rgb.size, (77, 77, 77))),
        (stored, rgb),
    ):
        found, expected = (backbone.prepare(one, [Segment("it", 0)]) for one in (given, seen))
        assert found.image_hw == expected.image_hw == (24, 48)
        assert found.prefix.image.keys() == expected.prefix.image.keys()
        for key, value in expected.prefix.image.items():
            assert torch.equal(value, found.prefix.image[key]), (given.mode, key)


def test_generate_gives_only_the_answer() -> None:
    backbone = shared("llava_next")
    inputs = to_vlm(backbone.vlm, backbone.collate([backbone.prepare(picture(48, 48), [])]).tensors)
    ids = backbone.vlm.generate(**inputs, max_new_tokens=5, do_sample=False)
    expected = backbone.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert backbone.generate(picture(48, 48), max_new_tokens=5) == expected.strip()


def test_a_digest_knows_every_weight() -> None:
    one, same, other = build("deepseek_vl"), build("deepseek_vl"), build("deepseek_vl", seed=1)
    assert one.weights_digest() == same.weights_digest() != other.weights_digest()
    assert len(one.weights_digest()) == 64
    with torch.no_grad():
        next(p for n, p in same.vlm.named_parameters() if "norm" in n)[0] += 1e-6
    assert one.weights_digest() != same.weights_digest()
    assert build("deepseek_vl", dtype=torch.bfloat16).weights_digest() != one.weights_digest()
