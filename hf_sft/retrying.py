"""Requests to the Hub, made again where waiting may help: 429, 5xx, a conflict, a lost connection.

huggingface_hub repeats what a large file needs (preupload, LFS, parts) by itself; not the requests
that make a repository or a branch, ask about one, validate a card or commit.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import parse_ratelimit_headers

log = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the second try, the third, …
LONGEST = 300.0  # seconds that a server may ask for; the Hub counts requests over 5 minutes
PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
Answer = TypeVar("Answer")


def patiently(request: Callable[[], Answer]) -> Answer:
    """``request()``, up to six times in all; it must be one that may be repeated.

    Raises:
        HTTPError: what the last try met, what waiting does not help against, or a server that
            asks for more than ``LONGEST`` seconds.
    """
    for usual in WAITS:
        try:
            return request()
        except (HTTPError, json.JSONDecodeError) as error:  # a gateway answers in HTML
            wait = asked_wait(error, usual)
            if not passes(error) or wait > LONGEST:
                raise
            reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
            log.warning("The Hub: %s. Trying again in %g s.", reason, wait)
            time.sleep(wait)
    return request()


def passes(error: Exception) -> bool:
    """Whether another try may end otherwise."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING


def asked_wait(error: Exception, usual: float) -> float:
    """Seconds to wait: what the answer asks for in ``Retry-After`` or ``RateLimit``, if more."""
    if not isinstance(error, HfHubHTTPError):
        return usual
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return max(usual, limit.reset_in_seconds)
    after = headers.get("Retry-After", "")
    return max(usual, float(after)) if after.isdecimal() else usual
