"""An exponential moving average of the head's weights, which is what a run validates and keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flmm_core.errors import WeightsError
from flmm_core.pipeline.fit import check_weights
from flmm_core.pipeline.head import Head


class WeightAverage:
    """After step n, average += (1 - d) * (weights - average), d = min(decay, n / (n + 9)).

    So the random weights that a run begins with have no part in it, and a run that is short for
    its decay averages about its last tenth. With decay 0 the average is the trained head itself.

    Args:
        head: It is trained on.
    """

    def __init__(self, head: Head, decay: float) -> None:
        self.trained, self.decay = head, decay
        self._average = AveragedModel(head, multi_avg_fn=self._mix) if decay else None

    @property
    def head(self) -> Head:
        """The head with averaged weights."""
        if self._average is None:
            return self.trained
        head = self._average.module
        assert isinstance(head, Head)
        return head

    def update(self) -> None:
        """Count in the weights of another step."""
        if self._average is not None:
            self._step = int(self._average.n_averaged) + 1
            self._average.update_parameters(self.trained)

    def _mix(self, average: Any, weights: Any, count: Tensor | int) -> None:
        # torch has the count on the GPU here, to be waited for; at step 1 it copies the weights.
        decay = min(self.decay, self._step / (self._step + 9))
        get_ema_multi_avg_fn(decay)(average, weights, count)

    # --- in checkpoints, beside the averaged weights ------------------------------------------

    def state(self) -> dict[str, Tensor] | None:
        """The trained weights, if they are not the averaged ones; `check` and `load` take it."""
        return None if self._average is None else dict(self.trained.state_dict())

    def check(self, state: Mapping[str, Tensor] | None, asked: str) -> None:
        """WeightsError, which begins with `asked`, unless a state is one of this head."""
        if self._average is None:
            return
        repair = "Resume from another checkpoint by linking 'last' to it."
        if state is None:
            raise WeightsError(
                asked, found="It has no weights beside their average.", repair=repair
            )
        check_weights(self.trained.state_dict(), state, asked=asked, repair=repair)

    def load(
        self, averaged: Mapping[str, Tensor], state: Mapping[str, Tensor] | None, step: int
    ) -> None:
        """Go on after `step`: from a checkpoint's averaged weights and what `state` returned."""
        self.head.load_weights(averaged)
        if self._average is not None and state is not None:
            self.trained.load_weights(state)
            with torch.no_grad():
                self._average.n_averaged.fill_(step)
