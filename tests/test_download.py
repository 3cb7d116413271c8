"""fetch against a server of our own on this machine: what goes right, and all that can go wrong."""

import dataclasses
import hashlib
import http.server
import io
import os
import resource
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jaxcls.data.formats.archives import Archive
from jaxcls.download import Published, cache, cache_folder, cached_path, fetch, network
from jaxcls.errors import UserError
from jaxcls.models.weights import catalogue as weights
from jaxcls.models.weights.catalogue import WEIGHTS, WeightSet, find_weights

CONTENT = safetensors.numpy.save(
    {"weight": np.random.default_rng(0).normal(size=(700, 1000)).astype(np.float32)}
)
"""2.8 MB: several chunks."""
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


@dataclasses.dataclass
class Server:
    """A server with one file, at /where-it-lies; other addresses redirect there.

    Attributes:
      address: "http://127.0.0.1:...".
      etag: what it says the hash is, in the header of the redirection.
      sent: bytes of the content that are sent.
      length: what it says the length is, None for nothing.
      status: of the answer, where it is not a good one.
      hops: redirections before the one with the hash.
      requests: methods and paths, in order.
      midway: called when half of the content has been sent.
    """

    address: str = ""
    content: bytes = CONTENT
    etag: str | None = f'"{SHA256}"'
    sent: int = len(CONTENT)
    length: int | None = len(CONTENT)
    status: int | None = None
    hops: int = 0
    requests: list[str] = dataclasses.field(default_factory=list)
    midway: Callable[[], None] = lambda: None

    def replace(self, content: bytes) -> None:
        self.content, self.sent, self.length = content, len(content), len(content)


def handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            server.requests.append(f"{self.command} {self.path}")
            if server.status is not None:
                self.send_error(server.status)
            elif self.path.count("moved") < server.hops:
                self.redirect(f"{self.path}/moved")
            elif "/resolve/" in self.path:
                self.redirect("/where-it-lies", server.etag)
            else:
                self.send_content()

        def redirect(self, path: str, etag: str | None = None) -> None:
            self.send_response(302)
            self.send_header("Location", path)
            if etag is not None:
                self.send_header("X-Linked-Etag", etag)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_content(self) -> None:
            self.send_response(200)
            if server.length is not None:
                self.send_header("Content-Length", str(server.length))
            self.end_headers()
            if self.command == "GET":
                half = server.sent // 2
                self.wfile.write(server.content[:half])
                server.midway()
                self.wfile.write(server.content[half : server.sent])

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        """A client that goes away in the middle is part of some tests."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server in the place of both sources, and an empty cache."""
    state = Server()
    with QuietServer(("127.0.0.1", 0), handler(state)) as running:
        state.address = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("HF_ENDPOINT", state.address)
        monkeypatch.setattr(weights, "TORCHVISION", state.address)
        monkeypatch.setenv("JAXCLS_CACHE", str(tmp_path / "cache"))
        yield state
        running.shutdown()
        thread.join()


def torchvision_set(digest: str = SHA256) -> WeightSet:
    """A set whose file's name says how its hash begins."""
    return dataclasses.replace(
        find_weights("torchvision/resnet50:v2"), file=f"resnet50-{digest[:8]}.pth"
    )


def archive(server: Server, digest: str = SHA256) -> Archive:
    """An archive of a dataset, whose whole hash is known."""
    return Archive("pets", f"{server.address}/pets.tar.gz", digest)


HUB_SET = find_weights("timm/resnet50.a1_in1k")
BOTH = [HUB_SET, torchvision_set()]


def leftovers() -> list[str]:
    """What lies in the cache besides complete files with their hashes."""
    files = (path for path in cache_folder().rglob("*") if path.is_file())
    names = {path.name for path in files}
    whole = {name for name in names if f"{name}.sha256" in names}
    return sorted(names - whole - {f"{name}.sha256" for name in whole})


def failure(wanted: Published) -> str:
    """The sentence with which fetch fails; nothing must be left in the cache."""
    with pytest.raises(UserError) as error:
        fetch(wanted)
    assert leftovers() == [] and not cached_path(wanted).exists()
    return str(error.value)


@pytest.mark.parametrize("wanted", BOTH, ids=["hub", "torchvision"])
def test_downloads_once(server: Server, wanted: WeightSet) -> None:
    path = fetch(wanted)
    assert path == cached_path(wanted)
    assert path.read_bytes() == CONTENT
    first = list(server.requests)
    server.status = 500
    assert fetch(wanted) == path
    assert server.requests == first, "the network was used for a cached file"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_an_archive_of_a_dataset(server: Server) -> None:
    """It keeps its name, and nobody is asked for its hash."""
    path = fetch(archive(server))
    assert path == cache_folder() / "datasets" / "pets" / "pets.tar.gz"
    assert path.read_bytes() == CONTENT
    assert server.requests == ["GET /pets.tar.gz"]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError) as error:
        fetch(archive(server))
    wrong = hashlib.sha256(CONTENT[:-1]).hexdigest()
    said = (
        f"{path} is damaged or not the published pets.tar.gz: its SHA-256 is {wrong}, expected "
        f"{SHA256}. Remove it and pets.tar.gz.sha256, and it is downloaded again."
    )
    assert str(error.value) == said
    path.with_name("pets.tar.gz.sha256").unlink()
    with pytest.raises(UserError) as error:
        fetch(archive(server))
    assert str(error.value) == said, "the hash is known without the note"


def test_a_known_hash_counts_more_than_the_note(server: Server) -> None:
    """Neither a note of other content nor a nonsense one is believed, and it is mended."""
    path = fetch(archive(server))
    note = path.with_name("pets.tar.gz.sha256")
    right = note.read_text()
    path.write_bytes(b"another")
    note.write_text(f"{hashlib.sha256(b'another').hexdigest()}  pets.tar.gz\n")
    with pytest.raises(UserError, match=f"damaged.*expected {SHA256}"):
        fetch(archive(server))
    path.write_bytes(CONTENT)
    note.write_text("nonsense")
    assert fetch(archive(server)) == path
    assert note.read_text() == right


def test_an_archive_that_cannot_be_had(server: Server) -> None:
    url, path = archive(server).url, cached_path(archive(server))
    assert failure(archive(server, OTHER)) == (
        f"what came from {url} is not the published pets.tar.gz: its SHA-256 is {SHA256}, "
        f"expected {OTHER}. It was thrown away; perhaps a proxy answered in the server's "
        f"place. Try again, or put the right file at {path}."
    )
    server.status = 404
    assert failure(archive(server)) == (
        f"cannot download pets.tar.gz from {url} (HTTP 404 Not Found). Try again; or download "
        f"that address on another machine and put the file at {path}; or give its path as "
        "data.path."
    )


def test_the_hash_is_read_before_the_content(server: Server) -> None:
    fetch(HUB_SET)
    address = "/timm/resnet50.a1_in1k/resolve/main/model.safetensors"
    assert server.requests == [
        f"HEAD {address}",
        f"GET {address}",
        "GET /where-it-lies",
    ]


def test_the_note_is_readable_by_sha256sum(server: Server) -> None:
    path = fetch(HUB_SET)
    note = path.with_name(f"{path.name}.sha256")
    assert note.read_text() == f"{SHA256}  {path.name}\n"


def test_a_moved_repository_is_followed(server: Server) -> None:
    server.hops = 2
    assert fetch(HUB_SET).read_bytes() == CONTENT
    server.etag = f'"{OTHER}"'
    assert OTHER in failure(dataclasses.replace(HUB_SET, name="timm/other"))


@pytest.mark.parametrize("etag", [None, '"0123456789abcdef"', f'W/"{OTHER}"'])
def test_without_a_hash_the_structure_is_checked(
    server: Server, etag: str | None
) -> None:
    """A git hash (of a small file) and a weak one say nothing about the content."""
    server.etag = etag
    server.replace(b"<html>sign in</html>")
    assert "no safetensors file" in failure(HUB_SET)
    small = safetensors.numpy.save({"bias": np.ones(3)})
    server.replace(small)
    assert fetch(HUB_SET).read_bytes() == small


def test_no_hash_because_the_server_is_ill(server: Server) -> None:
    """Then nothing is downloaded unchecked."""
    server.status = 503
    assert "HTTP 503" in failure(HUB_SET)
    assert [request[:4] for request in server.requests] == ["HEAD"]


def test_a_file_instead_needs_the_options_that_the_name_brings(server: Server) -> None:
    server.status = 503
    message = failure(find_weights("timm/tf_efficientnet_b0.in1k"))
    wanted = "instead of the name, model.bn_epsilon=0.001, model.padding='same'."
    assert message.endswith(wanted)
    assert failure(HUB_SET).endswith("instead of the name.")


def test_another_content_than_announced(server: Server) -> None:
    server.etag = f'"{OTHER}"'
    message = failure(HUB_SET)
    assert SHA256 in message and OTHER in message
    message = failure(torchvision_set(OTHER))
    assert SHA256 in message and "expected 00000000." in message


@pytest.mark.parametrize("wanted", BOTH, ids=["hub", "torchvision"])
def test_a_shorter_content_than_announced(server: Server, wanted: WeightSet) -> None:
    server.etag = None
    server.sent = len(CONTENT) - 5
    message = failure(wanted)
    assert f"{len(CONTENT) - 5:,} of {len(CONTENT):,} bytes" in message


@pytest.mark.parametrize("wanted", BOTH, ids=["hub", "torchvision"])
def test_a_shorter_content_of_unknown_length(server: Server, wanted: WeightSet) -> None:
    server.etag = server.length = None
    server.sent = len(CONTENT) - 5
    failure(wanted)


@pytest.mark.parametrize("wanted", BOTH, ids=["hub", "torchvision"])
def test_what_the_network_refuses(server: Server, wanted: WeightSet) -> None:
    """The sentence says what to download by hand, where to put it, and what else to do."""
    server.status = 404
    with pytest.raises(UserError, match="HTTP 404 Not Found") as error:
        fetch(wanted)
    refusal = error.value.__cause__
    assert isinstance(refusal, urllib.error.HTTPError)
    assert refusal.fp.isclosed(), "the connection stays open as long as the error"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", closed)
            patch.setattr(weights, "TORCHVISION", closed)
            message = failure(wanted)
            assert "Connection refused" in message
            for part in (wanted.url, str(cached_path(wanted)), "path of a file"):
                assert part in message


def test_a_silent_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.2)
    server.midway = lambda: time.sleep(1.0)
    assert "timed out" in failure(HUB_SET)


@pytest.mark.parametrize(
    "hub", ["hub.example", "ftp://hub.example", "http://[", "http://ü"]
)
def test_a_setting_that_is_no_address(
    server: Server, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    message = failure(HUB_SET)
    assert "HF_ENDPOINT" in message and hub in message


def test_interrupted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle leaves nothing, and the next attempt begins anew."""

    class Interrupting:
        def __init__(self, **options: object):
            pass

        def __enter__(self) -> "Interrupting":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, size: int) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(network, "tqdm", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            fetch(HUB_SET)
    assert leftovers() == []
    assert fetch(HUB_SET).read_bytes() == CONTENT


def test_killed(server: Server) -> None:
    """A process that is killed in the middle leaves no file under the set's name; what it
    leaves is removed when it has been silent for long."""
    go_on = threading.Event()
    server.midway = lambda: wait(go_on)
    code = """
        from jaxcls.download import fetch
        from jaxcls.models.weights.catalogue import find_weights
        fetch(find_weights("timm/resnet50.a1_in1k"))
    """
    folder = cache_folder() / "weights"
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    while not any(part.stat().st_size for part in folder.glob("*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    go_on.set()
    assert not cached_path(HUB_SET).exists()
    (part,) = leftovers()
    server.midway = lambda: None
    assert fetch(HUB_SET).read_bytes() == CONTENT
    assert leftovers() == [part], "another process may still be writing it"
    cached_path(HUB_SET).unlink()
    old = time.time() - 4000
    os.utime(folder / part, (old, old))
    fetch(HUB_SET)
    assert leftovers() == []


def wait(event: threading.Event) -> None:
    assert event.wait(60)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    fetch(HUB_SET)
    shown = stream.getvalue()
    assert (f"{HUB_SET.name}: 100%" in shown and "2.80M/2.80M" in shown) == terminal
    assert bool(shown) == terminal


def test_parallel(server: Server) -> None:
    """Every process gets the whole file, whoever is first."""
    together = threading.Barrier(4)

    def wait_for_all() -> None:
        together.wait(60)

    server.midway = wait_for_all
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(HUB_SET).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert leftovers() == []


@pytest.mark.parametrize("wanted", BOTH, ids=["hub", "torchvision"])
def test_a_damaged_file_is_not_used(server: Server, wanted: WeightSet) -> None:
    path = fetch(wanted)
    damaged = bytearray(CONTENT)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    server.requests.clear()
    with pytest.raises(UserError) as error:
        fetch(wanted)
    message = str(error.value)
    assert hashlib.sha256(damaged).hexdigest() in message and SHA256 in message
    assert str(path) in message and server.requests == []


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"nonsense\n"])
def test_a_damaged_note_is_said(server: Server, note: bytes) -> None:
    path = fetch(HUB_SET)
    path.with_name(f"{path.name}.sha256").write_bytes(note)
    with pytest.raises(UserError, match=r"emove .*downloaded again"):
        fetch(HUB_SET)


@pytest.mark.parametrize("wanted", BOTH, ids=["hub", "torchvision"])
def test_put_there_by_hand(server: Server, wanted: WeightSet) -> None:
    """It is used without the network, and from then on guarded as any other."""
    path = cached_path(wanted)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch(wanted) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="damaged"):
        fetch(wanted)
    assert server.requests == []


def test_another_file_put_there_by_hand(server: Server) -> None:
    path = cached_path(torchvision_set())
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    with pytest.raises(UserError, match=f"not the file of.*expected {SHA256[:8]}"):
        fetch(torchvision_set())


def test_a_cache_that_cannot_be_written(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXCLS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*JAXCLS_CACHE"):
        fetch(HUB_SET)
    assert server.requests == []


def test_a_full_disk(server: Server) -> None:
    """It is not taken for a fault of the network."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, limits[1]))
    try:
        message = failure(HUB_SET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in message and "JAXCLS_CACHE" in message
    assert "cannot download" not in message


def test_a_shared_cache_that_is_read_only(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's file without a note is used, though none can be written."""
    path = cached_path(HUB_SET)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "_write_note", refuse)
    assert fetch(HUB_SET) == path


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("JAXCLS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "jaxcls"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "jaxcls"
    monkeypatch.setenv("JAXCLS_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("JAXCLS_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "jaxcls"


def test_no_two_sets_share_a_file() -> None:
    names = [cached_path(wanted).name for wanted in WEIGHTS.values()]
    assert len({name.lower() for name in names}) == len(names)
    assert not any(set(name) & set('/\\:*?"<>| ') for name in names)


def test_where_weights_lie() -> None:
    assert torchvision_set().place == "weights/torchvision--resnet50-v2.pth"
    assert HUB_SET.place == "weights/timm--resnet50.a1_in1k.safetensors"
