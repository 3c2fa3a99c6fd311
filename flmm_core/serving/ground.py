"""POST /v1/ground: an image and phrases in, masks out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result
from flmm_core.serving.budget import Account
from flmm_core.serving.reading import media_type, parse, read_form, read_json
from flmm_core.serving.refusals import RefusalError
from flmm_core.serving.service import Service, check_text, service, unless_gone

router = APIRouter(prefix="/v1", tags=["grounding"])


class GroundOptions(BaseModel):
    """What to look for, and what to answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    phrases: Annotated[
        list[str], Field(description='For example `["red ring", "the star"]`.', min_length=1)
    ]
    model: Annotated[
        str | None, Field(description="A name from `/v1/models`; by default the first.")
    ] = None
    prompt: Annotated[
        str | None, Field(description="The user's text beside the image, if not as trained.")
    ] = None
    together: Annotated[
        bool, Field(description="Read all phrases in one caption, each seeing those before it.")
    ] = False
    keep_absent: Annotated[
        bool, Field(description='Give the masks of phrases, too, that are "not there".')
    ] = False
    min_probability: Annotated[
        float | None,
        Field(description='"Not there" below it; by default as chosen in training.', ge=0, le=1),
    ] = None
    masks: Annotated[
        Literal["rle", "png"],
        Field(description="`png` adds each mask as a PNG (0 and 255) in base64."),
    ] = "rle"


class GroundRequest(GroundOptions):
    """An image and phrases."""

    image: Annotated[str, Field(description="Base64, plain or as a data URL.")]


class Found(BaseModel):
    """One phrase's mask."""

    phrase: str
    segmentation: Annotated[dict[str, Any], Field(description="COCO's compressed RLE.")]
    bbox: Annotated[list[int], Field(description="x, y, width, height in pixels.")]
    area: Annotated[int, Field(description="In pixels.")]
    score: Annotated[float, Field(description="Mean probability over the mask's pixels.")]
    probability: Annotated[
        float | None, Field(description="Calibrated: how likely the mask is right (IoU >= 0.5).")
    ]
    there: Annotated[bool, Field(description='False: the answer is "not there".')]
    png: Annotated[str | None, Field(description="With `masks: png`.")] = None


class GroundResponse(BaseModel):
    """The masks, in the order of the phrases."""

    model: str
    width: Annotated[int, Field(description="Of the image, upright; all masks have its size.")]
    height: int
    found: list[Found]


@router.post(
    "/ground",
    summary="Masks of phrases in an image",
    response_model=GroundResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/GroundRequest"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image", "phrases"],
                        "properties": {
                            "image": {"type": "string", "format": "binary"},
                            "phrases": {"type": "array", "items": {"type": "string"}},
                        },
                        "description": "Each phrase is a field `phrases`; other fields as in JSON.",
                    }
                },
            },
        }
    },
)
async def ground(request: Request) -> Response:
    """Segment phrases in an image. Requests that come together share a forward of the model."""
    own = service(request)
    with own.account() as account:
        options, image = await _read(request, own, account)
        name, grounder = own.grounder(options.model)
        check_phrases(options.phrases, own)
        check_text(options.prompt or "", "prompt", own)
        if options.keep_absent and options.min_probability is not None:
            raise RefusalError(400, "keep_absent and min_probability contradict each other.")
        with own.worker.arriving():
            decoded = await own.image(image, account)
            job = own.worker.enqueue_ground(
                grounder,
                lambda: grounder.prepare(
                    decoded, options.phrases, options.prompt, together=options.together
                ),
            )
        result: Result = await unless_gone(request, own.worker.outcome(job))
        body = await asyncio.to_thread(_answer, name, grounder, options, result)
    return Response(body, media_type="application/json")


def check_phrases(phrases: list[str], own: Service) -> None:
    """`RefusalError` 400 for too many phrases, or too long ones."""
    limits = own.limits
    if len(phrases) > limits.phrases:
        raise RefusalError(
            400,
            f"There are {len(phrases)} phrases; the limit is {limits.phrases}.",
            param="phrases",
        )
    for number, phrase in enumerate(phrases):
        if len(phrase) > limits.phrase_letters:
            raise RefusalError(
                400,
                f"Phrase {number} has {len(phrase)} characters; the limit is "
                f"{limits.phrase_letters}.",
                param=f"phrases.{number}",
            )


async def _read(
    request: Request, own: Service, account: Account
) -> tuple[GroundOptions, str | bytes]:
    """The options and the image, not decoded yet."""
    if media_type(request) != "multipart/form-data":
        asked = await read_json(request, GroundRequest, own.limits, account)
        return asked, asked.image
    form = await read_form(request, own.limits, account)
    image = form.get("image")
    if image is None:
        raise RefusalError(400, "The form has no field `image`.", param="image")
    fields: dict[str, Any] = {}
    for key in {*form} - {"image"}:
        values = form.getlist(key)
        if any(isinstance(value, UploadFile) for value in values):
            raise RefusalError(400, "Only the field `image` may be a file.", param=key[:80])
        fields[key] = values if key == "phrases" else values[-1]
    options = parse(GroundOptions, json.dumps(fields).encode())
    return options, image if isinstance(image, str) else await image.read()


def _answer(name: str, grounder: Grounder, options: GroundOptions, result: Result) -> bytes:
    threshold = options.min_probability
    if threshold is None and not options.keep_absent and grounder.confidence is not None:
        threshold = grounder.confidence.threshold
    if threshold is not None:
        result = result.abstain(threshold)
    records = result.to_coco()
    if options.masks == "png":
        for number, record in enumerate(records):
            record["png"] = base64.b64encode(mask_png(result, number)).decode("ascii")
    w, h = result.image.size
    return json.dumps({"model": name, "width": w, "height": h, "found": records}).encode()


def mask_png(result: Result, number: int) -> bytes:
    """One mask as a PNG, 0 and 255."""
    file = io.BytesIO()
    Image.fromarray(result.mask(number).numpy() * np.uint8(255)).save(file, "png")
    return file.getvalue()
