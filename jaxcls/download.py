"""Published files from the network, whole or not at all, and kept in a cache.

    path = fetch(find_weights("torchvision/resnet50:v2"))  # jaxcls.models.weights.catalogue
    path = fetch(Cifar10.archive)  # of a dataset: jaxcls.data.formats.archives

    $JAXCLS_CACHE, else $XDG_CACHE_HOME/jaxcls, else ~/.cache/jaxcls
      weights/torchvision--resnet50-v2.pth           what was published, byte for byte
             /torchvision--resnet50-v2.pth.sha256    its hash, as `sha256sum -c` reads it
      datasets/cifar10/cifar-10-binary.tar.gz
                      /cifar-10-binary.tar.gz.sha256

Python's own urllib fetches them: torchvision's loader would need PyTorch, the hub's client is a
dozen packages, and neither checks the whole hash of a file each time that it is used. Nor does
anything here import JAX: the processes that load data need the cache too.
"""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tqdm import tqdm

import jaxcls
from jaxcls.errors import UserError

TIMEOUT = 30
"""Seconds without a byte after which a server is given up."""
CHUNK = 1 << 20  # bytes


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

    The file is checked each time, the network is used only if it is missing. Any number of
    processes may do this at once, and be killed at any moment.

    Raises:
      UserError: if it cannot be downloaded or written, is not what was published, or is
        damaged. Each says where to put a file that was downloaded by hand.
    """
    path = cached_path(wanted)
    with _reading(path):
        cached = path.exists()
    if cached:
        _check(path, wanted)
    else:
        _download(wanted, path)
    return path


def cached_path(wanted: Published) -> Path:
    """Returns where a file is, or will be, on this machine."""
    return cache_folder() / wanted.place


def cache_folder() -> Path:
    """Returns the folder of what can be downloaded or made again."""
    if folder := os.environ.get("JAXCLS_CACHE"):
        return _absolute(folder)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _absolute(base) / "jaxcls"


def _absolute(folder: str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"{folder} cannot be a cache ({error}) Set JAXCLS_CACHE to a folder."
        ) from error


def _check(path: Path, wanted: Published) -> None:
    """Compares a file in the cache with its hash.

    A file that was put there by hand has no hash beside it: it is compared with what of the
    hash is known, and remembered. Where the whole hash is known, what lies beside the file
    does not count.

    Raises:
      UserError: if they differ.
    """
    note = _note(path)
    with _reading(path):
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        remembered = note.read_text("utf-8").split()[:1] if note.exists() else None
    whole = len(wanted.sha256) == 64
    expected = [wanted.sha256] if whole else remembered
    if not found.startswith(wanted.sha256) or expected not in (None, [found]):
        known = expected[0] if expected else f"{wanted.sha256}..."
        own = f"; if you have put this file there yourself, remove {note.name} alone"
        more = "" if whole else own
        raise UserError(
            f"{path} is damaged or not {_described(wanted)}: its SHA-256 is {found}, expected "
            f"{known}. Remove it and {note.name}, and it is downloaded again{more}."
        )
    if remembered != [found]:
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
    with _replacing(_note(path)) as file:
        file.write(f"{digest}  {path.name}\n".encode())


def _download(wanted: Published, path: Path) -> None:
    """Downloads a file to `path`.

    Raises:
      UserError: if it cannot be had or kept, or is not what the server announced.
    """
    url = wanted.url
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        digest = hashlib.sha256()
        with _network(wanted, path):
            expected = wanted.sha256 or _announced_hash(url)
        with _replacing(path) as file:
            with contextlib.closing(_content(wanted, path)) as chunks:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
            file.flush()
            found = digest.hexdigest()
            fault = _fault(found, expected, file.name)
            if fault:
                raise UserError(
                    f"what came from {url} is not {_described(wanted)}: {fault}. It was "
                    "thrown away; perhaps a proxy answered in the server's place. Try again, "
                    f"or put the right file at {path}."
                )
            _write_note(path, found)  # first: what has its name has its hash beside it


def _fault(found: str, expected: str, name: str) -> str:
    """Returns what is wrong with a file that was downloaded, "" if nothing is.

    Args:
      found: its SHA-256.
      expected: how that must begin; "" if the hub did not say, then its structure is checked.
      name: where it is.
    """
    if not found.startswith(expected):
        return f"its SHA-256 is {found}, expected {expected.ljust(64, '.')}"
    if not expected:
        import safetensors  # here alone: what has a hash is any file

        try:
            with safetensors.safe_open(
                name, framework="np"
            ):  # reads the table of contents
                pass
        except safetensors.SafetensorError as error:
            return f"it is no safetensors file ({error})"
    return ""


def _content(wanted: Published, path: Path) -> Generator[bytes, None, None]:
    """Yields the content of a file, with a bar on a terminal.

    What goes wrong where the chunks are used is not mistaken for a fault of the network.

    Raises:
      UserError: if it cannot be had, or ends before the announced length.
    """
    request = urllib.request.Request(wanted.url, headers=_headers())
    with (
        _network(wanted, path),
        urllib.request.urlopen(request, timeout=TIMEOUT) as response,
    ):
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        received = 0
        with tqdm(
            desc=wanted.name,
            total=total,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        ) as bar:
            while chunk := response.read(CHUNK):
                received += len(chunk)
                bar.update(len(chunk))
                yield chunk
        if total is not None and received != total:
            raise ConnectionError(f"it ended after {received:,} of {total:,} bytes")


def _announced_hash(url: str) -> str:
    """Returns the SHA-256 that the hub says a file has, or "" if it says none.

    The hub answers with a redirection to where the content lies, and writes the content's hash
    into its header: the redirection is not followed once that is there.
    https://huggingface.co/docs/huggingface_hub/package_reference/file_download
    """
    opener = urllib.request.build_opener(_StopAtHash)
    request = urllib.request.Request(url, method="HEAD", headers=_headers())
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            headers = response.headers
    except urllib.error.HTTPError as error:
        with error:
            if "X-Linked-Etag" not in error.headers:
                raise
            headers = error.headers
    etag = headers.get("X-Linked-Etag", "").strip('"').lower()
    return etag if re.fullmatch("[0-9a-f]{64}", etag) else ""


class _StopAtHash(urllib.request.HTTPRedirectHandler):
    """Follows redirections (a moved repository, a mirror) up to the one that has the hash."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> urllib.request.Request | None:
        if "X-Linked-Etag" in headers:
            return None  # urllib then raises an HTTPError with these headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _headers() -> dict[str, str]:
    return {"User-Agent": f"jaxcls/{jaxcls.__version__}"}


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when all has been written, and is removed
    if that fails."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Removes what killed downloads left; a live one is never silent for an hour."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        with contextlib.suppress(OSError):  # another process may remove it too
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


@contextlib.contextmanager
def _network(wanted: Published, path: Path) -> Iterator[None]:
    """Turns what urllib raises into one sentence with the way round the network."""
    try:
        yield
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise UserError(
            f"cannot download {wanted.name} from {wanted.url} ({_reason(error)}). Try again; "
            f"or download that address on another machine and put the file at {path}; or "
            f"{wanted.instead}."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it holds the connection
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a fault of the cache's disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): make room, or set "
            "JAXCLS_CACHE to a folder that you can write to."
        ) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns a file of the cache that cannot be read into one sentence."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot read {path} or the hash beside it ({reason}): remove both, and they are "
            "downloaded again, or set JAXCLS_CACHE to another folder."
        ) from error
