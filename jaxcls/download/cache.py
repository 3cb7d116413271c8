"""The cache of published files: each is downloaded once, and checked at each use."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from jaxcls.download import network
from jaxcls.errors import UserError
from jaxcls.files import UNFINISHED, replacing

ABANDONED = 3600
"""Seconds of silence after which a download has been killed: a live one ends by its timeout."""


class Published(Protocol):
    """A file that can be downloaded."""

    @property
    def name(self) -> str:
        """What messages and the bar call it: its own name, or that of what it holds."""

    @property
    def url(self) -> str:
        """Where it is, http or https."""

    @property
    def sha256(self) -> str:
        """How its SHA-256 begins, or all 64 digits of it, in hexadecimal. "" where it is not
        known: it is a safetensors file then, on a server that answers as Hugging Face's."""

    @property
    def place(self) -> str:
        """Its path in the cache folder, "weights/torchvision--resnet50-v2.pth"."""

    @property
    def instead(self) -> str:
        """What a person can do who has the file elsewhere, "give its path as data.path"."""


def fetch(wanted: Published) -> Path:
    """Returns the path of a file on this machine; downloads it if it is not there.

    The file is checked each time; the network is used only if the file is missing. Any number
    of processes may do this at once, and may be killed at any moment.

    Raises:
      UserError: if it cannot be downloaded or written, is not what was published, or is
        damaged. Each says where to put a file that was downloaded by hand.
    """
    path = cached_path(wanted)
    with _explained(
        f"cannot read {path} or the hash beside it",
        ": remove both, and they are downloaded again, or set JAXCLS_CACHE to another folder.",
    ):
        if path.exists():
            _check(path, wanted)
            return path
    with _writing(path):
        _download(wanted, path)
    return path


def cached_path(wanted: Published) -> Path:
    """Returns where a file is, or will be, on this machine."""
    return cache_folder() / wanted.place


def cache_folder() -> Path:
    """Returns the folder of what can be downloaded or made again."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("JAXCLS_CACHE") or os.path.join(base, "jaxcls")
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"{folder} cannot be a cache ({error}) Set JAXCLS_CACHE to a folder."
        ) from error


def _check(path: Path, wanted: Published) -> None:
    """Compares a file in the cache with its hash.

    A file that was put there by hand has no hash beside it: it is compared with what of the
    hash is known, and its hash is kept. Where the whole hash is known, what lies beside the
    file does not count.

    Raises:
      UserError: if they differ.
    """
    note = _note(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    noted = None
    if note.exists():
        noted = " ".join(note.read_text("utf-8", "backslashreplace").split()[:1])
    whole = len(wanted.sha256) == 64
    expected = wanted.sha256 if whole else noted
    if not found.startswith(wanted.sha256) or expected not in (None, found):
        own = f"; if you have put this file there yourself, remove {note.name} alone"
        raise UserError(
            f"{path} is damaged or not {_described(wanted)}: its SHA-256 is {found}, expected "
            f"{expected or wanted.sha256 + '...'}. Remove it and {note.name}, and it is "
            f"downloaded again{'' if whole else own}."
        )
    if noted != found:
        with contextlib.suppress(OSError):  # a cache that others share may be read-only
            _write_note(path, found)


def _described(wanted: Published) -> str:
    """Returns "the file of timm/resnet50.a1_in1k", "the published cifar-10-binary.tar.gz"."""
    own_name = wanted.name == wanted.place.rpartition("/")[2]
    return f"the {'published' if own_name else 'file of'} {wanted.name}"


def _note(path: Path) -> Path:
    """Returns the path of the file that holds another file's hash."""
    return path.with_name(f"{path.name}.sha256")


def _write_note(path: Path, digest: str) -> None:
    with replacing(_note(path)) as part:
        part.write_bytes(f"{digest}  {path.name}\n".encode())


def _download(wanted: Published, path: Path) -> None:
    """Downloads a file to `path`.

    Raises:
      UserError: if it cannot be had, or is not what the server announced.
      OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(
        f"{path.name}.*{UNFINISHED}"
    ):  # what killed downloads left
        with contextlib.suppress(OSError):  # another process may remove it too
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
    digest = hashlib.sha256()
    with _network(wanted, path):
        expected = wanted.sha256 or network.announced_hash(wanted.url)
    with replacing(path) as part:
        chunks = network.content(wanted.url, wanted.name)
        with open(part, "xb") as file:
            with contextlib.closing(chunks), _network(wanted, path):
                for chunk in chunks:
                    with _writing(path):
                        file.write(chunk)
                    digest.update(chunk)
        found = digest.hexdigest()
        if fault := _fault(found, expected, part):
            raise UserError(
                f"what came from {wanted.url} is not {_described(wanted)}: {fault}. It was "
                "thrown away; perhaps a proxy answered in the server's place. Try again, "
                f"or put the right file at {path}."
            )
        _write_note(path, found)  # first: what has its name has its hash beside it


def _fault(found: str, expected: str, path: Path) -> str:
    """Returns what is wrong with a file that was downloaded, "" if nothing is.

    Args:
      found: its SHA-256.
      expected: how that must begin; "" if the hub did not say, then its structure is checked.
      path: where it is.
    """
    if not found.startswith(expected):
        return f"its SHA-256 is {found}, expected {expected.ljust(64, '.')}"
    if not expected:
        import safetensors  # here alone: what has a hash is any file

        try:
            with safetensors.safe_open(path, framework="np"):
                pass  # the table of contents has been read
        except safetensors.SafetensorError as error:
            return f"it is no safetensors file ({error})"
    return ""


def _writing(path: Path) -> contextlib.AbstractContextManager[None]:
    way_out = "make room, or set JAXCLS_CACHE to a folder that you can write to."
    return _explained(f"cannot write {path}", f": {way_out}")


def _network(wanted: Published, path: Path) -> contextlib.AbstractContextManager[None]:
    return _explained(
        f"cannot download {wanted.name} from {wanted.url}",
        ". Try again; or download that address on another machine and put the file at "
        f"{path}; or {wanted.instead}.",
    )


@contextlib.contextmanager
def _explained(problem: str, way_out: str) -> Iterator[None]:
    """Turns what the system or the network refuses into one sentence with the reason.

    Raises:
      UserError: in place of any other error.
    """
    try:
        yield
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
            reason = f"HTTP {error.code} {error.reason}"
        else:
            cause = getattr(error, "reason", error)  # of an URLError
            reason = getattr(cause, "strerror", None) or str(cause)
        raise UserError(
            f"{problem} ({reason or type(error).__name__}){way_out}"
        ) from error
