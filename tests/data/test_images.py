from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_core.data.images import image_size_of, read_image
from flmm_core.errors import DataError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def corner_image() -> Image.Image:
    """40 x 24 pixels, green, with a red top left quarter."""
    image = Image.new("RGB", (40, 24), GREEN)
    image.paste(RED, (0, 0, 20, 12))
    return image


def colors(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_images_stand_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    # How a camera would have stored the upright image; each undoes what the number asks for.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = corner_image() if undo is None else corner_image().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    read = read_image(tmp_path / f"a.{suffix}", image_hw=(24, 40))
    assert np.abs(colors(read) - colors(corner_image()))[2:10, 2:18].max() < 20
    assert np.abs(colors(read) - colors(corner_image()))[14:, 22:].max() < 20


@pytest.mark.parametrize(
    ("damage", "size"),
    [
        (lambda exif: exif.replace(b"\x01\x0e\x00\x02", b"\x01\x52\x00\x02"), (24, 40)),
        (lambda exif: b"Exif\x00\x00not a header at all", (40, 24)),
        (lambda exif: exif[:20], (40, 24)),
    ],
)
def test_damaged_exif_does_not_cost_the_image(
    tmp_path: Path, damage: Callable[[bytes], bytes], size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    corner_image().save(tmp_path / "a.jpg", exif=damage(exif.tobytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(tmp_path / "a.jpg").size == size


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 200, 51), (204, 204, 244)),
        ("LA", (0, 51), (204, 204, 204)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 300, (1, 1, 1)),
    ],
)
def test_every_mode_becomes_rgb_on_white(
    tmp_path: Path, mode: str, value: object, expected: tuple[int, int, int]
) -> None:
    Image.new(mode, (5, 4), value).save(tmp_path / "a.png")  # type: ignore[arg-type]
    read = read_image(tmp_path / "a.png")
    assert read.size == (5, 4)
    assert {read.getpixel((x, y)) for x in range(5) for y in range(4)} == {expected}


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "many.png", transparency=bytes([255, 51]))
    image.save(tmp_path / "a.gif", transparency=1)
    for name, second in (
        ("one.png", (255, 255, 255)),
        ("many.png", (244, 224, 214)),
        ("a.gif", (255, 255, 255)),
    ):
        read = read_image(tmp_path / name)
        assert (read.getpixel((0, 0)), read.getpixel((1, 0))) == ((10, 20, 30), second)


def test_transparent_grey_and_rgb(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 9).save(tmp_path / "l.png", transparency=9)
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "rgb.png", transparency=(9, 8, 7))
    wide = Image.new("I;16", (2, 1), 9000)
    wide.putpixel((1, 0), 0)
    wide.save(tmp_path / "i16.png", transparency=9000)
    assert read_image(tmp_path / "l.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "rgb.png").getpixel((0, 0)) == (255, 255, 255)
    read = read_image(tmp_path / "i16.png")
    assert (read.getpixel((0, 0)), read.getpixel((1, 0))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("profile", [None, b"no profile"])
def test_cmyk_keeps_its_colors(tmp_path: Path, suffix: str, profile: bytes | None) -> None:
    extra = {} if profile is None else {"icc_profile": profile}
    corner_image().convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95, **extra)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        assert stored.mode == "CMYK"
    difference = colors(read_image(tmp_path / f"a.{suffix}")) - colors(corner_image())
    assert np.abs(difference)[2:10, 2:18].max() < 12
    assert np.abs(difference)[14:, 22:].max() < 12


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), color) for color in (RED, GREEN)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == RED


# --- what cannot be read -----------------------------------------------------------------------


def fails(path: Path, **arguments: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read_image(path, **arguments)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    return caught.value


def test_a_missing_image_and_a_folder(tmp_path: Path) -> None:
    assert str(fails(tmp_path / "no.png")) == (
        f"The image {tmp_path}/no.png cannot be read.\nNo such file or directory.\nCheck the path."
    )
    assert str(fails(tmp_path)).splitlines()[:2] == [
        f"The image {tmp_path} cannot be read.",
        "Is a directory.",
    ]


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert str(fails(tmp_path / "a.jpg")) == (
        f"The image {tmp_path}/a.jpg is empty.\nIt has zero bytes.\nCopy or download it again."
    )


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    assert str(fails(tmp_path / "a.jpg")) == (
        f"The file {tmp_path}/a.jpg is not an image.\n"
        "Its contents are of no format that Pillow can read.\n"
        "Use a JPEG, PNG, WebP, TIFF, BMP or GIF file."
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "gif", "webp"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_an_image_cut_off(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    message = str(fails(path))
    assert message.splitlines()[0] in (
        f"The image {path} is broken or cut off.",
        f"The file {path} is not an image.",
    )
    if suffix in ("jpg", "png"):
        assert message.splitlines()[0].endswith("is broken or cut off.")
        assert message.splitlines()[1].startswith("Decoding it ended with: ")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises much and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (12_000, 10_000)])
def test_an_image_too_large_is_refused_by_its_header(
    tmp_path: Path, width: int, height: int
) -> None:
    """200 megapixels lie beyond Pillow's own limit, 120 below it; neither is decoded."""
    path = tmp_path / "a.png"
    path.write_bytes(png_header(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(fails(path)) == (
            f"The image {path} is too large.\n"
            "It has more than 100 megapixels.\n"
            "Make it smaller first."
        )


def test_an_image_of_another_size_than_its_annotations(tmp_path: Path) -> None:
    corner_image().save(tmp_path / "a.png")
    assert str(fails(tmp_path / "a.png", image_hw=(40, 24))) == (
        f"The image {tmp_path}/a.png does not have the size that its annotations were made "
        "for.\n"
        "It is 24 x 40 (height x width, upright), the annotations say 40 x 24.\n"
        "Check that this is the image that was annotated, neither resized nor turned."
    )


def test_an_eps_program_is_not_run(tmp_path: Path) -> None:
    corner_image().save(tmp_path / "a.eps")
    assert str(fails(tmp_path / "a.eps")) == (
        f"The image {tmp_path}/a.eps is an EPS program, which is not run.\nSave it as PNG or JPEG."
    )


def test_floating_point_pixels(tmp_path: Path) -> None:
    Image.new("F", (2, 2), 0.5).save(tmp_path / "a.tif")
    assert str(fails(tmp_path / "a.tif")) == (
        f"The image {tmp_path}/a.tif has floating-point pixels.\n"
        "Which of its values is white is not recorded.\n"
        "Save it with 8 or 16 bits a channel."
    )


def test_the_file_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    corner_image().save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = read_image(path)
        path.write_bytes(b"gone")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    assert buffer.tell() > 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_upright_image(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    corner_image().save(path, exif=exif)
    read = read_image(path)
    assert image_size_of(path) == (read.height, read.width)


def test_what_has_no_size_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match="is not an image"):
        image_size_of(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="No such file"):
        image_size_of(tmp_path / "b.jpg")
