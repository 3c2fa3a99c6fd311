"""Whole requests that no server should honor, of every kind; see hostile.py."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

# --- the parts of requests ------------------------------------------------------------------


def head(path: str = "/v1/ground", method: str = "POST", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def post(body: bytes, kind: str = "application/json", path: str = "/v1/ground") -> bytes:
    return head(path, content_type=kind, content_length=len(body)) + body


def form(*parts: tuple[str, bytes], edge: str = "edge", end: str = "--") -> bytes:
    body = b"".join(
        f"--{edge}\r\nContent-Disposition: form-data; {names}\r\n\r\n".encode() + data + b"\r\n"
        for names, data in parts
    )
    return post(body + f"--{edge}{end}\r\n".encode(), f"multipart/form-data; boundary={edge}")


def png(
    width: int, height: int, rows: bytes = b"", more: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG of any stated size, with any compressed rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


GOOD = png(16, 16, (b"\0" + bytes(range(48))) * 16)
GOOD_TEXT = base64.b64encode(GOOD).decode()


def body_of(**fields: Any) -> bytes:
    return json.dumps({"image": GOOD_TEXT, "phrases": ["a star"], **fields}).encode()


# --- kinds of attacks -----------------------------------------------------------------------


def bodies(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """JSON that is none, too deep, too much, or not what is asked for."""
    deep = rng.randrange(500, 50_000)
    yield "deep arrays", b"[" * deep + b"]" * deep
    yield "deep objects", b'{"a":' * deep + b"1" + b"}" * deep
    yield "deep in a field", body_of()[:-1] + b',"prompt":' + b"[" * deep + b"]" * deep + b"}"
    yield "cut off", body_of()[: rng.randrange(1, len(body_of()) - 1)]
    yield "random bytes", rng.randbytes(rng.randrange(1, 5000))
    yield "nothing", b""
    yield "not UTF-8", b'{"image":"' + GOOD_TEXT.encode() + b'","phrases":["\xff\xfe"]}'
    yield "UTF-16", body_of().decode().encode("utf-16")
    yield "half a surrogate pair", body_of().replace(b"a star", b"\\ud800")
    for word in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"-1", b"2"):
        yield f"a number {word[:9]!r}", body_of()[:-1] + b',"min_probability":' + word + b"}"
    for value in (None, 1, True, [], {}, [[]], [1], [None], {"a": 1}, "a star", [""], [" "]):
        yield f"phrases {value!r}", body_of(phrases=value)
    for value in (None, 1, [], {}, "", "a", "====", "é", "a" * 9999, "\0", [GOOD_TEXT]):
        yield f"image {str(value)[:9]!r}", body_of(image=value)
    yield "many phrases", body_of(phrases=["a star"] * rng.randrange(100, 20_000))
    yield "a long phrase", body_of(phrases=["a" * rng.randrange(2000, 200_000)])
    yield "a phrase too long for the model", body_of(phrases=["a " * 450])
    yield "a long prompt", body_of(prompt="b" * rng.randrange(50_000, 200_000))
    yield "a long unknown field", body_of(**{"c" * 100_000: 1})
    yield "an unknown model", body_of(model=rng.choice(["x", "../../etc/passwd", "a" * 9999]))
    yield "unknown options", body_of(masks="exe", together="perhaps")
    yield "contradicting options", body_of(keep_absent=True, min_probability=0.5)
    yield "no object", rng.choice([b"1", b"[]", b'"a"', b"null", b"true"])
    yield "a comment", body_of() + b"// and more"


def images(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Files that are no images, broken ones, and bombs."""
    side = rng.randrange(6000, 60_000)
    zeros = b"\0" * 3_000_000
    yield "a PNG of many pixels without rows", png(side, side)
    yield "a PNG of many pixels that compress", png(20_000, 20_000, zeros)
    yield "a PNG of few bytes and the largest size", png(2**31 - 1, 2**31 - 1, zeros)
    yield "a PNG without height", png(16, 0)
    yield "a PNG whose rows are not compressed", GOOD.replace(b"\x78\xda", b"\0\0")
    yield "a PNG with a text that is a bomb", png(9, 9, more=((b"zTXt", b"a\0\0" + _bomb()),))
    yield "a PNG with a profile that is a bomb", png(9, 9, more=((b"iCCP", b"a\0\0" + _bomb()),))
    yield "half a PNG", GOOD[: rng.randrange(9, len(GOOD) - 20)]
    size = struct.pack("<HH", 65_535, 65_535)
    yield "a GIF of many pixels", b"GIF89a" + size + b"\0\0\0,\0\0\0\0" + size + b"\0\x08\0;"
    frame = struct.pack(">HBHHB", 17, 8, 65_500, 65_500, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
    yield "a JPEG of many pixels", b"\xff\xd8\xff\xc0" + frame + b"\xff\xd9"
    info = struct.pack("<IiiHHIIiiII", 40, 50_000, rng.choice([-1, 1]) * side, 1, 24, *[0] * 6)
    yield "a BMP of many pixels", b"BM" + struct.pack("<III", 54, 0, 54) + info
    yield "a PPM of many pixels", b"P6 %d %d 255\n" % (side, side) + rng.randbytes(99)
    yield "a TIFF of junk", b"II*\0\x08\0\0\0" + rng.randbytes(rng.randrange(10, 3000))
    yield "a WebP of junk", b"RIFF" + rng.randbytes(4) + b"WEBPVP8 " + rng.randbytes(500)
    yield "an icon of junk", b"\0\0\1\0\xff\xff" + rng.randbytes(4000)
    yield "an EPS program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    yield "an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/>'
    yield "a PDF", b"%PDF-1.7\n" + rng.randbytes(500)
    yield "a zip", b"PK\3\4" + rng.randbytes(500)
    yield "random bytes", rng.randbytes(rng.randrange(1, 20_000))


def _bomb() -> bytes:
    return zlib.compress(b"\0" * 30_000_000, 9)


def sources(rng: random.Random) -> Iterator[str]:
    """Texts as image that are URLs, or nearly."""
    yield from (
        "http://127.0.0.1/", "http://localhost:8000/healthz", "HTTP://[::1]/", "http://0x7f.1/",
        "http://2130706433/", "http://169.254.169.254/latest/meta-data/", "http://0/",
        "http://[::ffff:127.0.0.1]/", "http://10.0.0.1/", "http://user:word@127.0.0.1/",
        "https://127.0.0.1:1/", "http://127.0.0.1#@example.com/", "http://", "http:///a", "//a/b",
        "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "ftp://127.0.0.1/a",
        "gopher://127.0.0.1:8000/_GET", "http://\0/", "http://a\r\nHost: b/", "http://" + "a" * 300,
        "data:", "data:,", "data:image/png,abc", "data:image/png;base64", "data:;base64,%%%",
        "data:text/html;base64,PGI+", "data:image/png;base64,", "data:image/png;base64,AA",
        "http://" + ".".join(["a"] * rng.randrange(5, 120)), "http://%31%32%37.0.0.1/",
    )  # fmt: skip


def paths(rng: random.Random) -> Iterator[bytes]:
    """Requests for what is not there, or not in this way."""
    for path in (
        "/../../etc/passwd", "/v1/../../etc/passwd", "/v1/ground/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/v1//ground",
        "/v1/ground/", "/V1/GROUND", "/v1/ground%00", "/v1/ground;a=b", "/%ff%fe", "/%", "/%zz",
        "/docs/../../a", "/.git/config", "/.env", "/static/..\\..\\a", "http://169.254.169.254/a",
        "*", "/" + "a" * rng.randrange(1000, 60_000), "/v1/" + "../" * rng.randrange(5, 3000),
    ):  # fmt: skip
        yield head(path, content_type="application/json", content_length=2) + b"{}"
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "get", "BREW"):
        yield head("/v1/ground", method)
    yield head("/metrics?" + "a" * 200_000, "GET")
    yield head("/healthz", "POST", content_length=3) + b"abc"


def junk(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """What is not HTTP, or not quite."""
    yield "random bytes", rng.randbytes(rng.randrange(20, 5000)) + b"\r\n\r\n"
    yield "zeros", b"\0" * rng.randrange(1, 100_000) + b"\r\n\r\n"
    yield "TLS", b"\x16\3\1\2\0\1\0\1\xfc\3\3" + rng.randbytes(500) + b"\r\n\r\n"
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "HTTP/0.9", b"GET /\r\n\r\n"
    yield "HTTP/9.9", b"GET /v1/ground HTTP/9.9\r\nHost: a\r\n\r\n"
    yield "no host", b"GET /v1/ground HTTP/1.1\r\n\r\n"
    yield "two hosts", b"GET /v1/ground HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    yield "no path", b"POST  HTTP/1.1\r\nHost: a\r\n\r\n"
    yield "a space before a colon", b"POST /v1/ground HTTP/1.1\r\nHost : a\r\n\r\n"
    yield "a folded header", b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: a\r\n b\r\n\r\n"
    yield "a header that is not text", b"GET /v1/ground HTTP/1.1\r\nHost: a\r\nA: \0\1\r\n\r\n"
    yield "a long header", head(a="b" * rng.randrange(70_000, 300_000))
    yield "many headers", head(**{f"a{number}": 1 for number in range(9000)})
    yield "a header without end", b"POST /v1/ground HTTP/1.1\r\nA: " + b"a" * 200_000
    size = rng.choice(["-1", "a", "1, 2", "0x10", "1e9", "9" * 40, "", "+5", "٣"])
    yield f"a length of {size}", head(content_type="application/json", content_length=size)
    yield (
        "two lengths",
        b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    )
    chunked = head(content_type="application/json", transfer_encoding="chunked")
    for chunk in (
        b"zz\r\n",
        b"-1\r\n",
        b"f" * 30 + b"\r\n",
        b"5\r\nabc\r\n0\r\n\r\n",
        b"1;" + b"a" * 99_999,
    ):
        yield f"a chunk {chunk[:9]!r}", chunked + chunk  # fmt: skip
    yield "a strange encoding", head(transfer_encoding="gzip, chunked") + b"0\r\n\r\n"
    both = head(content_type="application/json", content_length=4, transfer_encoding="chunked")
    yield "a length and chunks", both + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    yield "a compressed body", head(content_encoding="gzip", content_length=9) + b"123456789"
    zipped = zlib.compress(b"0" * 9_000_000, 9)
    yield "a compressed bomb", head(
        content_type="application/json", content_encoding="deflate", content_length=len(zipped)
    ) + zipped  # fmt: skip
    yield "a websocket", head(
        "/v1/ground", "GET", connection="upgrade", upgrade="websocket", sec_websocket_version=13,
        sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==",
    )  # fmt: skip
    yield "a request too early", head(content_length=2, content_type="application/json") + b"{}" * 9


def forms(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Multipart bodies that are broken or ask for nothing."""
    image, phrase = ('name="image"; filename="a.png"', GOOD), ('name="phrases"', b"a star")
    yield "no image", form(phrase)
    yield "no phrases", form(image)
    yield "a phrase as file", form(image, ('name="phrases"; filename="../../a"', b"a star"))
    yield "an empty image", form(('name="image"; filename="a"', b""), phrase)
    yield "an image of junk", form(('name="image"; filename="a"', rng.randbytes(900)), phrase)
    yield "a part without name", form(image, ("", b"a"))
    yield "an unknown field", form(image, phrase, ('name="a"', b"b"))
    yield "many parts", form(image, *[phrase] * rng.randrange(200, 5000))
    yield "many files", form(*[image] * 50, phrase)
    yield "a long field", form(image, ('name="phrases"', b"a" * 1_500_000))
    yield "a name that is not UTF-8", form(image, phrase, ('name="\xff"', b"\xff"))
    yield "a long name", form(image, phrase, (f'name="{"a" * 60_000}"', b"b"))
    yield "no end", form(image, phrase, end="")[:-8]
    body = b"--edge\r\nContent-Disposition: form-data\r\n\r\n\r\n--edge--\r\n"
    for kind in (
        "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=" + "a" * 5000, "multipart/mixed; boundary=edge",
        "multipart/form-data; boundary=edge; charset=rot13", "multipart/form-data; boundary=\xe9",
        "application/x-www-form-urlencoded", "text/plain", "image/png", "application/json; a=",
    ):  # fmt: skip
        yield f"a body of {kind[:50]}", post(body, kind)


def chats(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Conversations that cannot be had."""
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{GOOD_TEXT}"}}

    def talk(content: Any = "Hello?", **fields: Any) -> bytes:
        messages = [{"role": "user", "content": content}]
        return json.dumps({"messages": messages, **fields}).encode()

    yield "no image", talk()
    for content in (None, 1, [], {}, [1], [[]], [{}], [{"type": "text"}], [{"type": "a"}]):
        yield f"content {content!r}", talk(content)
    for messages in (None, [], [None], "a", [{"role": "root", "content": "a"}], [{}] * 5000):
        yield f"messages {str(messages)[:9]!r}", talk(messages=messages)
    yield "only an assistant", talk(messages=[{"role": "assistant", "content": "a"}])
    yield "long", talk([shown, {"type": "text", "text": "a" * rng.randrange(21_000, 400_000)}])
    yield "longer than the model reads", talk([shown, {"type": "text", "text": "a " * 5000}])
    yield "many images", talk([shown] * rng.randrange(9, 500))
    yield "half a surrogate pair", talk([shown]).replace(b'"user"', b'"user\\ud800"')
    yield "deep", talk()[:-1] + b',"metadata":' + b"[" * 9000 + b"]" * 9000 + b"}"
    for name, value in (
        ("n", 5), ("max_tokens", -1), ("max_tokens", 10**12), ("max_tokens", "a"), ("tools", [{}]),
        ("temperature", 1e99), ("temperature", float("nan")), ("top_p", 0), ("seed", -1),
        ("seed", 10**30), ("stream", "perhaps"), ("model", "none"), ("stop", ["a"] * 999),
        ("flmm", {"phrases": "spacy:model=/etc/passwd"}), ("flmm", {"phrases": "../a"}),
        ("flmm", {"phrases": ["a"] * 999}), ("flmm", []), ("a" * 9999, 1), ("__class__", {}),
    ):  # fmt: skip
        yield f"{name[:20]} {str(value)[:20]}", talk([shown], **{name: value})
        yield (
            f"{name[:20]} {str(value)[:20]}, streamed",
            talk([shown], **{"stream": True, name: value}),
        )
    for text in ("http://127.0.0.1/", "file:///etc/passwd", "data:,", "a", "", "ftp://a/b"):
        yield f"source {text}", talk([{"type": "image_url", "image_url": {"url": text}}])
    large = base64.b64encode(png(20_000, 20_000, b"\0" * 99_999)).decode()
    for part in ({"url": large}, {"url": "data:image/png;base64," + large}, large, {}, None):
        yield f"image {str(part)[:20]}", talk([{"type": "image_url", "image_url": part}])


def slow(rng: random.Random) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """What comes a few bytes at a time and never ends."""
    whole = post(body_of())
    split = whole.index(b"\r\n\r\n") + 4
    yield "says nothing", (b"",)
    yield "a slow head", tuple(bytes([byte]) for byte in whole[:split])
    yield "a slow body", (whole[:split], *(bytes([byte]) for byte in whole[split : split + 90]))
    chunked = head(content_type="application/json", transfer_encoding="chunked")
    yield "slow chunks", (chunked, *([b"1\r\na\r\n"] * 90))
    yield "a head that stops", (whole[: rng.randrange(5, split - 4)],)
    yield "a body that stops", (whole[: rng.randrange(split, len(whole) - 1)],)
