"""The watch over images that are left out: said once, counted, too many end the run."""

import numpy as np
import pytest

from jaxcls.data.bad_images import BadImages
from jaxcls.data.loader import EvalBatches, Loader, TrainBatches
from jaxcls.data.sources import Source
from jaxcls.errors import UserError


class Torn(Source):
    """A hundred records, of which those with certain indices are bad."""

    class_names = ("a",)

    def __init__(self, *bad: int, max_share: float = 1.0):
        self.bad = bad
        self.max_bad_share = max_share

    def __len__(self) -> int:
        return 100

    def __repr__(self) -> str:
        return "torn(100)"

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        return {"image": np.zeros((1, 1, 1), np.uint8), "label": 0}

    def gather(
        self, ids: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        mask = ~np.isin(ids, self.bad)
        return {
            "image": np.zeros((len(ids), 1, 1, 1), np.uint8),
            "label": np.zeros(len(ids), int),
            "mask": mask,
        }

    def explain(self, index: int) -> str | None:
        return f"photo-{index}.jpg: truncated." if index in self.bad else None


@pytest.mark.parametrize(
    ("start", "workers"),
    [
        (0, 0),
        (14, 0),
        (14, 2),
        *(
            pytest.param(start, workers, marks=pytest.mark.slow)
            for start, workers in ((0, 1), (0, 3), (14, 1), (14, 3))
        ),
    ],
)
def test_each_bad_image_is_said_once(workers: int, start: int) -> None:
    source = Torn(3, 77, max_share=0.02)
    said: list[str] = []
    watch = BadImages(source, "train", say=said.append)
    assert not watch
    batches = TrainBatches(source, seed=0, batch_size=10, num_steps=40)
    with Loader(batches, start=start, workers=workers) as loader:
        rows = list(watch.watched(loader))
    assert len(rows) == 40 - start
    # Several epochs, and yet each once; in the order in which they come.
    line = "left out, a bad image of the train split: photo-{}.jpg: truncated."
    assert sorted(said) == [line.format(3), line.format(77)]
    assert len(watch) == 2
    masked = np.concatenate([batch["id"][~batch["mask"]] for batch in rows])
    assert set(masked.tolist()) == {3, 77}


def test_too_many_bad_images_end_the_run() -> None:
    bad = (1, 2, 3, 5, 8, 13, 21)
    said: list[str] = []
    watch = BadImages(Torn(*bad, max_share=0.06), "test", say=said.append)
    seen = 0
    with pytest.raises(UserError) as error:
        with Loader(EvalBatches(Torn(*bad), batch_size=10)) as loader:
            for _ in watch.watched(loader):
                seen += 1
    assert seen == 2 and len(said) == 7
    message = str(error.value)
    assert message.startswith(
        "7 of the 100 images of the test split are bad so far (7.00%), more than "
        "data.max_bad_share allows (6.00%):\n    photo-1.jpg: truncated.\n"
    )
    assert message.count("photo-") == 5 and "and 2 more" in message
    assert "raise data.max_bad_share" in message


def test_padding_is_not_bad() -> None:
    watch = BadImages(Torn(max_share=0), "test")
    batches = EvalBatches(Torn(), batch_size=60, rows_multiple=8)
    with Loader(batches) as loader:
        assert len(list(watch.watched(loader))) == 2
    assert len(watch) == 0


def test_an_image_that_has_been_mended_was_bad_all_the_same() -> None:
    said: list[str] = []
    watch = BadImages(Torn(), "train", say=said.append)
    watch.look_at({"id": np.array([4, -1]), "mask": np.array([False, False])})
    assert len(said) == len(watch) == 1 and "record 4 of torn(100)" in said[0]
