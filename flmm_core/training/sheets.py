"""Contact sheets of a run: some early on, the final ones at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flmm_core.data import rle
from flmm_core.data.images import read_image
from flmm_core.data.sample import Sample
from flmm_core.errors import FlmmError
from flmm_core.evaluation.baselines import head_method
from flmm_core.files import whole_folder
from flmm_core.loader.dataset import ExampleDataset, FeatureSource, Unusable
from flmm_core.loader.samplers import spread
from flmm_core.pipeline.head import Head
from flmm_core.progress import Progress
from flmm_core.training.contact_sheet import draw_sheet

FIRST_AFTER = 60.0
"""Seconds of training until the first sheets."""
FIRST = 3
"""How many there are then."""
SEARCHED = 50
"""Samples among which they are chosen."""


def write_sheets(
    source: FeatureSource, head: Head, samples: Sequence[Sample], count: int, folder: Path
) -> None:
    """Contact sheets of samples spread over a data set, named by their number."""
    if not count:
        return
    dataset, method = ExampleDataset(samples, source), head_method(source, head)
    with whole_folder(folder, replace=True) as aside:
        for number, index in enumerate(spread(range(len(samples)), count)):
            example = dataset[index]
            if isinstance(example, Unusable):
                continue
            (grounding,) = method.ground(source.collate([example.inputs]))
            sheet = draw_sheet(
                read_image(
                    example.sample.image_path,
                    image_hw=example.sample.image_hw,
                    as_stored=example.sample.as_stored,
                ),
                [phrase.text for phrase in example.sample.phrases],
                grounding.maps,
                grounding.coarse_logits,
                grounding.logits,
                example.truth,
                head.mask_head.channel_weights(grounding.maps),
            )
            sheet.save(aside / f"{number:02}.png")


@dataclass
class FirstSheets:
    """Sheets of unseen images after a minute of training, which those of the end replace.

    Of phrases that name something: what is drawn for others says nothing. They show early whether
    the masks are going to be any good, and change nothing of the run.
    """

    source: FeatureSource
    samples: Sequence[Sample]
    count: int
    folder: Path
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    _after: float | None = field(init=False)

    def __post_init__(self) -> None:
        wanted = len(self.samples) and self.count and not self.folder.exists()
        self._after = self.clock() + FIRST_AFTER if wanted else None

    @property
    def due(self) -> bool:
        """Whether it is time to draw."""
        return self._after is not None and self.clock() >= self._after

    def draw(self, head: Head, step: int) -> None:
        """Draw them once; what cannot be drawn is said and no reason to end the training."""
        self._after = None
        training = head.training
        head.eval()
        try:
            some = (self.samples[index] for index in spread(range(len(self.samples)), SEARCHED))
            there = [each for each in some if any(rle.area(phrase.mask) for phrase in each.phrases)]
            write_sheets(self.source, head, there, min(FIRST, self.count), self.folder)
            self.progress.say(f"First pictures, after step {step}: '{self.folder}'")
        except (FlmmError, OSError) as error:
            self.progress.say(f"No pictures after step {step}: {error}")
        finally:
            head.train(training)
