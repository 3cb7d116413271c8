"""Datasets of TFDS: one that a builder of our own prepares here, and ones that cannot be."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxcls.data.formats.tfds import Tfds
from jaxcls.errors import UserError

pytestmark = pytest.mark.filterwarnings("default")  # what TFDS itself warns of


def pixels(split: str, i: int) -> np.ndarray:
    rng = np.random.default_rng([len(split), i])
    return rng.integers(0, 256, (5 + i % 3, 9, 3), dtype=np.uint8)


def png(split: str, i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(split, i)).save(file, "PNG")
    return file.getvalue()


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Some images, stored as bytes; the id says which."""

    VERSION = tfds.core.Version("1.0.0")
    second_label = False
    arrays = False

    def _info(self) -> Any:
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
            "id": tfds.features.Scalar(np.int64),
        }
        if self.second_label:
            features["size"] = tfds.features.ClassLabel(num_classes=2)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._examples("train", 40),
            "test": self._examples("test", 12),
        }

    def _generate_examples(self) -> None:
        raise AssertionError("TFDS wants this method, but _split_generators needs none")

    def _examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(count):
            picture = pixels(split, i) if self.arrays else png(split, i)
            example = {"picture": picture, "kind": i % 3, "id": i}
            yield i, {**example, "size": 1} if self.second_label else example


class JaxclsPets(_Builder):
    pass


class JaxclsTwoLabels(_Builder):
    second_label = True


class JaxclsArrays(_Builder):
    arrays = True  # which TFDS encodes with TensorFlow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    for name in ("jaxcls_pets", "jaxcls_two_labels"):
        builder = tfds.builder(name, data_dir=folder)
        builder.download_and_prepare(file_format="array_record")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ids(data_dir: str, part: str) -> list[int]:
    """The ids of a split as TFDS itself reads it."""
    return [
        int(r["id"])
        for r in tfds.data_source("jaxcls_pets", split=part, data_dir=data_dir)
    ]


def error_of(split: str = "train", **options: str) -> str:
    with pytest.raises(UserError) as error:
        Tfds(**options).encoded(split)  # type: ignore[arg-type]
    return str(error.value)


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train", "train"),
        ("test", "test"),
        ("train", "train[:80%]"),
        ("test", "train[80%:]"),
        ("train", "train[3:7]+test"),
    ],
)
def test_images_and_labels_are_those_of_the_builder(
    data_dir: str, split: Any, part: str
) -> None:
    images = Tfds(name="jaxcls_pets", data_dir=data_dir, **{split: part}).encoded(split)
    expected = ids(data_dir, part)
    assert len(images) == len(expected) and images.class_names == ("cat", "dog", "eel")
    assert (
        images.labels.tolist() == [i % 3 for i in expected]
        and images.labels.dtype == np.int32
    )
    kinds = {png(s, i): i for s in ("train", "test") for i in range(40)}
    assert [kinds[images.read(i)] for i in range(len(images))] == expected
    assert repr(images).startswith(
        f"jaxcls_pets/1.0.0[{part}]({len(expected)} images in 3 cl"
    )
    assert images.where(2) == f"record 2 of jaxcls_pets/1.0.0[{part}]"
    assert "tensorflow" not in sys.modules


def test_pixels_on_a_canvas_and_the_way_to_a_worker(data_dir: str) -> None:
    source = Tfds(name="jaxcls_pets", data_dir=data_dir).source("test")
    again = pickle.loads(pickle.dumps(source))
    assert repr(again) == repr(source) and data_dir not in repr(source)
    batch = again.gather(np.arange(12))
    assert batch["image"].shape == (12, 256, 256, 3) and batch["mask"].all()
    np.testing.assert_array_equal(batch["image"], source.gather(np.arange(12))["image"])


def test_labels_are_read_once(
    data_dir: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Tfds(name="jaxcls_pets", data_dir=data_dir)
    first = dataset.encoded("train").labels
    (kept,) = (cache / "tfds").iterdir()
    np.save(kept, first[::-1].copy())  # so that it is seen that it is used
    np.testing.assert_array_equal(dataset.encoded("train").labels, first[::-1])
    for damage in (b"", b"\x93NUMPY", os.urandom(300)):
        kept.write_bytes(damage)
        np.testing.assert_array_equal(dataset.encoded("train").labels, first)
    kept.parent.chmod(0o500)
    monkeypatch.setenv("JAXCLS_CACHE", "/proc/nowhere")
    np.testing.assert_array_equal(dataset.encoded("train").labels, first)


def test_features_are_found_or_asked_for(data_dir: str) -> None:
    two = {"name": "jaxcls_two_labels", "data_dir": data_dir}
    assert "data.label_key does not say which. It has kind, size" in error_of(**two)
    assert Tfds(**two, label_key="kind").encoded("train").class_names == (
        "cat",
        "dog",
        "eel",
    )
    said = error_of(**two, label_key="kidn")
    assert (
        "data.label_key is 'kidn', but jaxcls_two_labels has no such feature of type ClassLabel"
        in said
    )
    assert "Did you mean 'kind'?" in said
    said = error_of(**two, label_key="kind", image_key="pictures")
    assert "data.image_key is 'pictures'" in said and "Did you mean 'picture'?" in said


def test_splits_that_are_not_there(data_dir: str) -> None:
    pets = {"name": "jaxcls_pets", "data_dir": data_dir}
    said = error_of(**pets, train="trian[:5]")
    assert (
        "data.train is 'trian[:5]'" in said
        and "Did you mean 'train'? It has train, test" in said
    )
    assert "data.test is 'test[:x]'" in error_of("test", **pets, test="test[:x]")
    said = error_of(**pets, train="train[:0]")
    assert (
        "data.train is 'train[:0]', which gives no records of jaxcls_pets. It has train"
        in said
    )


def test_a_builder_of_ones_own_is_prepared(tmp_path: Path) -> None:
    images = Tfds(name="jaxcls_pets", data_dir=str(tmp_path)).encoded("train")
    assert sorted(images.labels.tolist()) == sorted(i % 3 for i in range(40))
    assert "tensorflow" not in sys.modules


def test_what_needs_tensorflow_says_the_command(tmp_path: Path) -> None:
    said = error_of(name="cifar10", data_dir=str(tmp_path))
    assert (
        "python -c \"import tensorflow_datasets as tfds; tfds.builder('cifar10', "
        f"data_dir='{tmp_path}', file_format='array_record').download_and_prepare()\""
    ) in said
    said = error_of(name="jaxcls_arrays", data_dir=str(tmp_path))
    assert f'python -c "import {__name__}; import tensorflow_datasets' in said
    assert not list(tmp_path.glob("**/*.array_record*"))


def test_a_dataset_in_another_format_says_so(tmp_path: Path, data_dir: str) -> None:
    info = tmp_path / "jaxcls_pets/1.0.0"
    info.mkdir(parents=True)
    for file in Path(data_dir, "jaxcls_pets/1.0.0").glob("*.*"):
        (info / file.name.replace("array_record", "tfrecord")).write_bytes(
            file.read_bytes().replace(b'"array_record"', b'"tfrecord"')
        )
    said = error_of(name="jaxcls_pets", data_dir=str(tmp_path))
    assert (
        "is prepared as tfrecord" in said
        and f"data_dir='{tmp_path}-array_record'" in said
    )


def test_unknown_names(tmp_path: Path) -> None:
    said = error_of(name="cifar11", data_dir=str(tmp_path))
    assert "no dataset 'cifar11'. Did you mean 'cifar10" in said
    with pytest.raises(UserError, match=r"--config\.data\.name="):
        Tfds().validate()


def test_tensorflow_is_never_imported_where_it_is_installed(
    data_dir: str, tmp_path: Path
) -> None:
    """In processes of their own, with a package of that name that leaves a trace."""
    trace = tmp_path / "imported"
    package = tmp_path / "site/tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n__version__ = '2.21.0'\n"
    )
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys

        from jaxcls.data.loader import Loader, TrainBatches
        from jaxcls.data.formats.tfds import Tfds

        if __name__ == "__main__":
            dataset = Tfds(name="jaxcls_pets", data_dir={data_dir!r})
            for workers in (0, 1):
                batches = TrainBatches(dataset.source("train"), seed=0, batch_size=8, num_steps=3)
                with Loader(batches, workers=workers) as loader:
                    assert len(list(loader)) == 3
            assert dataset.encoded("test").class_names == ("cat", "dog", "eel")
            assert "tensorflow" not in sys.modules
            try:
                Tfds(name="cifar10", data_dir={str(tmp_path)!r}).encoded("train")
            except ValueError as error:
                assert "needs TensorFlow" in str(error)
            from tests.data.formats import test_tfds  # whose builders are known from here on

            try:
                Tfds(name="jaxcls_arrays", data_dir={str(tmp_path)!r}).encoded("train")
            except ValueError as error:
                assert "needs TensorFlow" in str(error)
            assert "tensorflow" not in sys.modules
            print("done")
        """)
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.getcwd()])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "done" in done.stdout, done.stderr
    assert not trace.exists()
