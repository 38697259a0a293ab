"""Ask the hub who we are, in a process of its own: ``python -m vllamad.hub.account`` (floor 2).

It goes the way of a pull (the same library, proxies and certificates), so what stops a pull stops this too. The
request is one JSON object on standard input: ``endpoint``, ``token``, ``timeout_s``. The answer is one line ``done``:
``status`` of HTTP, ``user`` ("" if the hub names none), ``date`` by the hub's clock as HTTP writes it; or ``problem``
if there was no answer. The token is neither printed nor part of any message.
"""

import json
import sys
from typing import cast

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]

# httpx in huggingface_hub 1.x, httpx2 in 2.x: the base of its errors is taken from where it is used.
_HttpError = cast(type[Exception], next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"))

ROUTE = "/api/whoami-v2"


def ask(endpoint: str, token: str, timeout_s: float) -> dict[str, object]:
    """Return what the module's text promises; never raises for what a network or a hub may do."""
    headers = build_hf_headers(token=token or False)
    try:
        answer = get_session().get(f"{endpoint}{ROUTE}", headers=headers, timeout=timeout_s)
    except (_HttpError, OSError) as error:
        return {"problem": str(error).splitlines()[0] if str(error) else type(error).__name__}
    user = ""
    if answer.status_code == 200:
        try:
            user = str(answer.json().get("name") or "")
        except (ValueError, AttributeError):
            return {"problem": "its answer is not a hub's"}
    return {"status": answer.status_code, "user": user, "date": answer.headers.get("Date", "")}


def main() -> int:
    """Read the request, answer it."""
    request = json.load(sys.stdin)
    found = ask(request["endpoint"], request["token"], request["timeout_s"])
    print(json.dumps({"type": "done"} | found), flush=True)  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
