"""Reaching the places that weights come from, or knowing within seconds that they cannot be reached.

Libraries try a hub again and again for a minute before they give up. Here the place is tried once, with the hub's own client;
where it does not answer, its libraries are told that they are offline, so that what is in their caches is found at once and
the rest fails at once.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import get_session

PATIENCE = 6.0
"""Seconds that a place is given to answer; names that nobody resolves may take longer than any timeout of a connection."""
BUSY = 500
"""Status from which on a place says that it cannot answer now."""


def hub() -> str:
    """Return the address of the hub, which may be a mirror."""
    return str(constants.ENDPOINT)


@contextmanager
def reaching(url: str) -> Iterator[str]:
    """Yield why the place of `url` cannot be reached, or ""; where it cannot, only caches answer in the block."""
    reason = "HF_HUB_OFFLINE is set" if huggingface_hub.is_offline_mode() and _is_hub(url) else why_unreachable(url)
    with ExitStack() as stack:
        if reason:
            error = urllib.error.URLError(reason)
            stack.enter_context(patch.object(constants, "HF_HUB_OFFLINE", True))
            for opener in ("urllib.request.urlopen", "torch.hub.urlopen"):
                stack.enter_context(patch(opener, side_effect=error))
        yield reason


def why_unreachable(url: str) -> str:
    """Return why the place of `url` does not answer within `PATIENCE`, or "" where it does."""
    place = urlsplit(url)
    root, answers = f"{place.scheme}://{place.netloc}/", []
    probe = threading.Thread(target=lambda: answers.append(_answer(root)), daemon=True)
    probe.start()
    probe.join(PATIENCE)
    reason = answers[0] if answers else f"no answer within {PATIENCE:.0f} seconds"
    return f"{place.hostname} cannot be reached: {reason}" if reason else ""


def _answer(root: str) -> str:
    """Return why a place does not answer to one small request, or ""; what it answers does not matter."""
    try:
        status = _status(root)
    except Exception as error:  # each transport raises errors of its own kind
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return f"it answers with status {status}" if status >= BUSY else ""


def _status(root: str) -> int:
    timeout = PATIENCE - 1
    if _is_hub(root):
        answer: Any = get_session().head(root, timeout=timeout)  # with the certificates and proxies of the download
        return int(answer.status_code)
    try:
        with urllib.request.urlopen(urllib.request.Request(root, method="HEAD"), timeout=timeout) as opened:
            return int(opened.status)
    except urllib.error.HTTPError as refused:
        return int(refused.code)


def _is_hub(url: str) -> bool:
    return urlsplit(url).netloc == urlsplit(hub()).netloc
