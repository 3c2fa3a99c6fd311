"""One image, and phrases as somebody thinks of them; a folder holds what was found so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from flmm_core.annotate.folder import Done, Manner, write_together
from flmm_core.annotate.requests import Request
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result, joined
from flmm_core.pipeline.result_files import write_result


class PhraseByPhrase:
    """The image is read once; what is written is as if all phrases had been asked together.

    Args:
        grounder: Grounds them.
        image: Was read from `path`.
        folder: For the files.
        head: As the user named it, for result.json.
        manner: As for `ground_folder`; each phrase is read alone.
    """

    def __init__(
        self,
        grounder: Grounder,
        path: Path,
        image: Image.Image,
        folder: Path,
        *,
        head: str,
        manner: Manner,
    ) -> None:
        self._look = grounder.look(image)
        self._threshold = grounder.confidence.threshold if grounder.confidence else None
        self._folder, self._manner = folder, manner
        self._path = path
        self._facts: dict[str, Any] = {"picture": str(path), "head": head}
        self._found: Result | None = None
        self._painted = image

    def ground(self, phrase: str) -> Done:
        """Ground one more phrase, and write what is found of all; raises as `Look.ground`."""
        new = self._look.ground([phrase], keep_absent=True)
        new = self._manner.decide(new, self._threshold)
        known = 0 if self._found is None else len(self._found)
        found = new if self._found is None else joined([self._found, new])
        painted, kinds = self._painted.copy(), self._manner.kinds
        if "overlay" in kinds:
            found.paint(painted, since=known)
        content = write_result(
            found, self._folder, kinds=kinds, kept=known, painted=painted, **self._facts
        )
        request = Request(self._path, found.phrases, self._path.name)
        done = Done(request, self._folder, content)
        write_together(self._folder, [done], kinds)
        self._found, self._painted = found, painted
        return done
