"""Tables of images: CSV and JSONL as people write them, and as they should not."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.data.formats.folder import FileImages
from jaxcls.data.formats.manifest import Manifest
from jaxcls.errors import UserError
from tests.data.formats.test_folder import png

ROWS = [("a/1.png", "dog"), ("a/2.png", "cat"), ("b/3.png", "ant"), ("b/4.png", "cat")]
ALL_BUT_NONE = 1e-12
"""A share so small that no path is held out."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for shade, (name, _) in enumerate(ROWS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(shade))
    return tmp_path


def write(folder: Path, text: str | bytes, name: str = "m.csv") -> str:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(content)
    return str(folder / name)


def train(path: str, **options: Any) -> FileImages:
    return Manifest(path=path, **{"test_share": ALL_BUT_NONE, **options}).encoded(
        "train"
    )


def listed(images: FileImages, root: Path) -> list[tuple[str, str]]:
    return [
        (os.path.relpath(images.where(i), root), images.class_names[images.labels[i]])
        for i in range(len(images))
    ]


def error_of(path: str, split: str = "train", **options: Any) -> str:
    with pytest.raises(UserError) as error:
        Manifest(path=path, **{"test_share": ALL_BUT_NONE, **options}).encoded(split)  # type: ignore[arg-type]
    return str(error.value)


LINES = [f"{path},{label}" for path, label in ROWS]
CSV = "path,label\n" + "\n".join(LINES) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", CSV),
        ("m.csv", CSV.encode("utf-8-sig")),
        ("m.csv", CSV.replace("\n", "\r\n")),
        ("m.csv", CSV.replace(",", ";")),
        ("m.tsv", CSV.replace(",", "\t")),
        ("m.csv", CSV.replace("\n", "\n\n") + ",\n"),
        (
            "m.csv",
            CSV.replace("path,label", ' path , label ,"a note"')
            .replace("\n", ',"x, y"\n')
            .replace(',"a note","x, y"', ',"a note"'),
        ),
        (
            "m.csv",
            '"label","path"\n'
            + "\n".join(f'{label},"./{path}"' for path, label in ROWS),
        ),
        ("m.jsonl", "\n".join(json.dumps({"path": p, "label": c}) for p, c in ROWS)),
        (
            "m.JSONL",
            b"\xef\xbb\xbf"
            + b"\r\n\n".join(
                json.dumps({"label": c, "path": p, "box": [1]}).encode()
                for p, c in ROWS
            ),
        ),
    ],
    ids="plain bom crlf semicolon tab empty quotes order json json-bom".split(),
)
def test_each_spelling_is_the_same_table(
    images: Path, name: str, content: str | bytes
) -> None:
    found = train(write(images, content, name))
    assert listed(found, images) == ROWS
    assert found.class_names == ("ant", "cat", "dog")
    assert [found.read(i) for i in range(4)] == [png(i) for i in range(4)]
    assert found.labels.dtype == np.int32


def test_names_with_commas_quotes_and_line_ends(images: Path) -> None:
    odd = ['a/x,"y".png', "a/line\nend.png", "a/grüße.png"]
    for name in odd:
        (images / name).write_bytes(png(1))
    rows = "".join('"' + name.replace('"', '""') + '",c\n' for name in odd)
    found = train(write(images, "path,label\n" + rows))
    assert [found.read(i) for i in range(3)] == [png(1)] * 3


def test_paths_are_relative_to_the_manifest_or_the_root(
    images: Path, tmp_path: Path
) -> None:
    (images / "lists").mkdir()
    path = write(images / "lists", CSV)
    assert listed(train(path, root=str(images)), images) == ROWS
    said = error_of(path)
    assert "4 files of 4 that" in said and "Set data.root" in said
    assert f"line 2 names {images}/lists/a/1.png" in said
    absolute = "path,label\n" + "".join(f"{images / p},{c}\n" for p, c in ROWS)
    assert listed(train(write(images / "lists", absolute)), images) == ROWS


def test_moving_the_data_does_not_change_its_name(images: Path, tmp_path: Path) -> None:
    said = repr(train(write(images, CSV)))
    assert re.fullmatch(r"m\.csv\[train\]\(4 images in 3 classes, [0-9a-f]{12}\)", said)
    absolute = "path,label\n" + "".join(f"{images / p},{c}\n" for p, c in ROWS)
    assert repr(train(write(images, absolute))) == said
    assert repr(train(write(images, CSV.replace("1.png,dog", "1.png,cat")))) != said


def test_other_columns(images: Path) -> None:
    path = write(images, CSV.replace("path,label", "file,kind"))
    assert listed(train(path, path_column="file", label_column="kind"), images) == ROWS
    said = error_of(path, path_column="fille")
    assert (
        "has no 'fille'. Did you mean 'file'? It has file, kind; set data.path_column"
        in said
    )
    assert "data.label_column" in error_of(path, path_column="file")
    said = error_of(path, path_column="file", label_column="kind", split_column="split")
    assert "data.split_column" in said


@pytest.mark.parametrize("test_word", ["val", "Validation", "TEST"])
def test_a_split_column(images: Path, test_word: str) -> None:
    split = ["train", test_word, "training", " train "]
    rows = [f"{line},{s}" for line, s in zip(LINES, split, strict=True)]
    path = write(images, "path,label,split\n" + "\n".join(rows))
    manifest = Manifest(path=path, split_column="split")
    assert listed(manifest.encoded("train"), images) == [ROWS[0], ROWS[2], ROWS[3]]
    assert listed(manifest.encoded("test"), images) == [ROWS[1]]


def test_val_comes_before_test_in_a_split_column(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{line},{s}"
        for line, s in zip(LINES, "test train train val".split(), strict=True)
    ]
    path = write(images, "path,label,split\n" + "\n".join(rows))
    manifest = Manifest(path=path, split_column="split")
    assert listed(manifest.encoded("test"), images) == [ROWS[3]]
    said = capsys.readouterr().err
    assert (
        "has val, test: val is what is evaluated" in said
        and "has no image of ant" in said
    )
    path = write(images, "path,label,split\na/1.png,dog,train\na/2.png,cat,val")
    assert "is of class 'cat'" in error_of(path, "test", split_column="split")
    assert "expected train, val, validation, test" in error_of(
        write(images, "path,label,split\na/1.png,dog,tset"), split_column="split"
    )
    assert "says train alone" in error_of(
        write(images, "path,label,split\na/1.png,dog,train"), split_column="split"
    )


def test_another_manifest_for_testing(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(images, "path,label\na/1.png,dog\na/2.png,cat")
    test_path = write(images, "path,label\nb/4.png,cat\na/1.png,dog", "t.csv")
    manifest = Manifest(path=path, test_path=test_path)
    assert manifest.encoded("test").labels.tolist() == [0, 1]
    assert repr(manifest.encoded("test")).startswith(
        "t.csv[test](2 images in 2 classes"
    )
    assert "hold 1 test image, so that the accuracy" in capsys.readouterr().err
    write(images, "path,label\nb/4.png,cta", "t.csv")
    said = error_of(path, "test", test_path=test_path)
    assert (
        "line 2 of" in said
        and "is of class 'cta'" in said
        and "Did you mean 'cat'?" in said
    )
    with pytest.raises(UserError, match="only one of them"):
        Manifest(path="x", test_path="y", split_column="z").validate()


def test_without_a_word_of_it_the_paths_divide(images: Path) -> None:
    paths = [f"c/{i}.png" for i in range(300)]
    (images / "c").mkdir()
    for name in paths:
        (images / name).touch()
    text = "path,label\n" + "".join(f"./{p},{i % 3}\n" for i, p in enumerate(paths))
    manifest = Manifest(path=write(images, text), test_share=0.25)
    test = [name for name, _ in listed(manifest.encoded("test"), images)]
    assert test == [
        p
        for p in paths
        if int(hashlib.sha256(p.encode()).hexdigest(), 16) / 16**64 < 0.25
    ]
    assert len(manifest.encoded("train")) == 300 - len(test) and 40 < len(test) < 110


def test_rows_that_come_twice_count_once(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = train(write(images, CSV + "a/1.png,dog\n./a//2.png,cat\n"))
    assert listed(found, images) == ROWS
    train(str(images / "m.csv"))
    assert capsys.readouterr().err.count("lists 2 images again") == 1
    train(write(images, CSV + "a/1.png,dog\n"))
    assert "lists 1 image again" in capsys.readouterr().err
    said = error_of(write(images, CSV + "a/1.png,cat\n"))
    assert "contradicts itself about a/1.png: line 2 says dog, line 6 cat" in said


def test_numbers_are_classes_by_their_value(images: Path) -> None:
    text = "path,label\na/1.png,10\na/2.png,2\nb/3.png,1\nb/4.png,10\n"
    found = train(write(images, text))
    assert found.class_names == ("1", "2", "10") and found.labels.tolist() == [
        2,
        1,
        0,
        2,
    ]
    as_json = "\n".join(
        json.dumps({"path": p, "label": n})
        for (p, _), n in zip(ROWS, (10, 2, 1, 10), strict=True)
    )
    assert train(write(images, as_json, "m.jsonl")).labels.tolist() == [2, 1, 0, 2]


def test_given_class_names(images: Path) -> None:
    names = ("zebra", "dog", "cat", "ant")
    found = train(write(images, CSV), class_names=names)
    assert found.class_names == names and found.labels.tolist() == [1, 2, 3, 2]
    numbers = "path,label\na/1.png,1\na/2.png,2\nb/3.png,3\nb/4.png,cat\n"
    assert train(write(images, numbers), class_names=names).labels.tolist() == [
        1,
        2,
        3,
        2,
    ]
    said = error_of(write(images, "path,label\na/1.png,4\n"), class_names=names)
    assert "is of class '4', which is not among the 4 classes" in said
    with pytest.raises(UserError, match="must be different"):
        Manifest(path="x", class_names=("a", "a")).validate()


def test_several_classes_an_image(images: Path) -> None:
    expected = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], np.uint8)
    text = "path,label\na/1.png,dog; cat\na/2.png,ant\nb/3.png,\nb/4.png,dog;ant;;cat\n"
    as_json = "\n".join(
        json.dumps({"path": path, "label": label})
        for (path, _), label in zip(
            ROWS, (["cat", "dog"], "ant", [], "ant;cat;dog"), strict=True
        )
    )
    for path in (write(images, text), write(images, as_json, "m.jsonl")):
        found = train(path, multi_label=True)
        assert (
            found.class_names == ("ant", "cat", "dog")
            and found.labels.dtype == np.uint8
        )
        np.testing.assert_array_equal(found.labels, expected)
    assert "set data.multi_label=true" in error_of(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.csv", "", "lists no images"),
        ("m.csv", "path,label\n", "lists no images"),
        (
            "m.csv",
            "path,label\na/1.png\n",
            "line 2 of .* has 1 column, the first line 2",
        ),
        ("m.csv", "path,label\na/1.png,cat,x\n", "line 2 of .* has 3 columns"),
        ("m.csv", "path,label\na/1.png, \n", "line 2 of .* has no class"),
        ("m.csv", "path,label\n,cat\n", "line 2 of .* has no path of an image, but ''"),
        ("m.csv", 'path,label\na/1.png,"cat\n', "cannot be read as CSV"),
        (
            "m.csv",
            "path,label,label\na/1.png,cat,dog\n",
            "several columns that are called 'label'",
        ),
        (
            "m.csv",
            "a/1.png,cat\na/2.png,dog\n",
            r"first line of .*\('a/1.png,cat'\): it must hold the names of the columns",
        ),
        (
            "m.csv",
            "path,label\na/1.png,gr\u00fcn\n".encode("latin-1"),
            r"not in UTF-8 \(.* byte 0xfc in position 21:",
        ),
        ("m.csv", "path,label\n".encode("utf-16"), "not in UTF-8"),
        (
            "m.csv",
            "path,label\na\0b,cat\n",
            r"no path of an image, but 'a\\x00b'|as CSV",
        ),
        ("m.jsonl", '{"path": "a/1.png"', "line 1 of .* is not JSON"),
        ("m.jsonl", "[" * 100_000, "line 1 of .* is not JSON"),
        ("m.jsonl", "[1]", "line 1 of .* is not an object"),
        ("m.jsonl", '{"path": "\\ud800", "label": 1}', "line 1 of .* is not JSON"),
        ("m.jsonl", '{"path": 3, "label": "cat"}', "has no path of an image, but 3"),
        ("m.jsonl", '{"path": "a/1.png", "label": null}', "class None, neither"),
        ("m.jsonl", '{"path": "a/1.png", "label": true}', "class True, neither"),
        ("m.jsonl", '{"path": "a/1.png", "lable": "cat"}', "Did you mean 'lable'"),
        (
            "m.jsonl",
            '{"path": "nowhere.png", "label": "cat"}',
            "1 file of 1 that .* cannot be found: line 1 names .*nowhere",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    images: Path, name: str, content: str | bytes, said: str
) -> None:
    assert re.search(said, error_of(write(images, content, name)), re.DOTALL)


def test_no_manifest(tmp_path: Path) -> None:
    assert "cannot read the manifest" in error_of(str(tmp_path / "none.csv"))
    assert "Is a directory" in error_of(str(tmp_path))
    with pytest.raises(UserError, match=r"--config\.data\.path="):
        Manifest().validate()


def test_all_files_are_looked_for(images: Path) -> None:
    text = CSV + "".join(f"c/{i}.png,cat\n" for i in range(7))
    path = write(images, text)
    said = error_of(path)
    assert "7 files of 11 that" in said and "(7 in all)" in said
    assert said.count("line ") == 5
    for line in range(6, 11):
        assert f"line {line} names {images}/c/{line - 6}.png" in said
    # What is left out when it is met may be missing; a root that is wrong may not be.
    assert len(train(path, on_bad_image="skip")) == 11
    said = error_of(path, on_bad_image="skip", root=str(images / "a"))
    assert "11 files of 11" in said
    os.mkfifo(images / "c.png")
    with_pipe = write(images, CSV + "c.png,cat\n")
    for choice in ("raise", "skip"):
        assert "line 6 of" in error_of(with_pipe, on_bad_image=choice)
        assert "c.png, which is no plain file" in error_of(with_pipe)
