"""Asks a server for a file, and for its hash.

This is Python's own urllib. pooch downloads through requests, which unpacks what a server marks as
compressed, so that the archives of datasets would not be the bytes that were published; it knows
neither the first digits of a hash nor a hash that the server announces, replaces a damaged file
without a word, and leaves what it has downloaded readable by its owner alone.
"""

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Generator
from typing import Any

from tqdm import tqdm

import jaxcls

TIMEOUT = 30
"""Seconds of silence after which a server is given up."""
CHUNK = 1 << 20  # bytes
HEADERS = {"User-Agent": f"jaxcls/{jaxcls.__version__}"}


def announced_hash(url: str) -> str:
    """Returns the SHA-256 that the hub announces for a file, or "" if it announces none.

    The hub answers with a redirection to where the content lies, and writes the content's hash
    into its header: the redirection is not followed once that is there.
    https://huggingface.co/docs/huggingface_hub/package_reference/file_download

    Raises:
      OSError, HTTPException, UnicodeError: if the server cannot be asked.
    """
    opener = urllib.request.build_opener(_StopAtHash)
    request = urllib.request.Request(url, method="HEAD", headers=HEADERS)
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            headers = response.headers
    except urllib.error.HTTPError as error:
        with error:
            headers = error.headers
            if "X-Linked-Etag" not in headers:
                raise
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


def content(url: str, title: str) -> Generator[bytes, None, None]:
    """Yields the content of a file, with a progress bar on a terminal.

    Raises:
      OSError, HTTPException, UnicodeError: if it cannot be had, or ends before the announced
        length.
    """
    request = urllib.request.Request(url, headers=HEADERS)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        total = response.length
        with tqdm(
            desc=title,
            total=total,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        ) as bar:
            while chunk := response.read(CHUNK):
                bar.update(len(chunk))
                yield chunk
        if response.length:  # what is still to come
            received = total - response.length
            raise ConnectionError(f"it ended after {received:,} of {total:,} bytes")
