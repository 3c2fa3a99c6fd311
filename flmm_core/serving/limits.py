"""What one request, and all of them together, may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server; beyond them a request is refused, and nothing else is touched.

    Attributes:
        body_bytes: Of a request's body.
        pixels: Of all images of a request together, counted before they are decoded.
        memory_bytes: Of the bodies and decoded images of all requests at a time.
        phrases: Of a request; `phrase_letters` are the characters of one.
        text_letters: Of all texts of a conversation, or of a prompt.
        images: Of a conversation.
        new_tokens: Of an answer.
        queue: Requests that may wait for the model; the next is answered with 429, and so is one
            that would probably wait for longer than `wait_seconds`.
        wait_seconds: A request that has waited so long is answered with 503.
        run_seconds: One that the model has not finished after this, beyond the wait, with 504.
        read_seconds: In which a body, or a fetched image, must have arrived. A client that
            receives nothing for so long is cut off.
        head_seconds: In which a request's head must have arrived.
        idle_seconds: After which a connection without request is closed.
        connections: Open at a time; the next is answered with 503.
        stop_seconds: How long a stopping server lets running requests finish.
        batch_phrases: Grounded in one forward.
        gather_seconds: How long the model waits for a request that has arrived but is still
            being decoded, to take it into the same forward.
    """

    body_bytes: int = 20 << 20
    pixels: int = 25_000_000
    memory_bytes: int = 1 << 30
    phrases: int = 64
    phrase_letters: int = 1000
    text_letters: int = 20_000
    images: int = 8
    new_tokens: int = 1024
    queue: int = 64
    wait_seconds: float = 30
    run_seconds: float = 60
    read_seconds: float = 30
    head_seconds: float = 10
    idle_seconds: float = 30
    connections: int = 1000
    stop_seconds: float = 20
    batch_phrases: int = 16
    gather_seconds: float = 0.005
