from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.confidence import Confidence, NotThere, Platt
from flmm_core.serving.page.models import Models
from flmm_core.serving.page.routes import LIMITS, demo_app
from flmm_core.serving.page.studio import Studio
from flmm_core.serving.server import Server, listen, url_of
from tests.browser import Page, opened
from tests.flows import fresh_grounder


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a head that finds something everywhere, with probabilities around 1/2."""
    torch.manual_seed(0)
    grounder = fresh_grounder(Recipe("qwen", base_channels=4, enlarge_to=16))
    torch.nn.init.normal_(grounder.head.mask_head.unet.conv_seg.weight)
    grounder.confidence = Confidence(
        masks=1,
        calibrator=Platt(slope=2.0, offset=-1.0),
        not_there=NotThere(threshold=0.25, quantity="iou", value=1, without=1, samples=1),
    )
    return grounder.save_pretrained(tmp_path_factory.mktemp("trained") / "head")


@pytest.fixture(scope="package")
def studio(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(Models([str(trained)], tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="package")
def address(studio: Studio) -> Iterator[str]:
    """Where the page is served."""
    with listen("127.0.0.1", 0) as listening:
        app = demo_app(studio, only_hosts=["localhost", "127.0.0.1"])
        server = Server(app, LIMITS)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield url_of(listening)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="package")
def page() -> Iterator[Page]:
    with opened() as page:
        yield page
