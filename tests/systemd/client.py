"""Clients inside the box; the standard library alone, for the system's Python.

once MODEL: asks once, prints the answer. load: four clients ask on ever new connections until standard input ends,
then the counts are printed, with the longest time that anyone waited.
"""

import collections
import http.client
import json
import sys
import threading
import time


def question(model: str) -> str:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "MARKED-QUESTION"}], "stream": False})


def ask(model: str = "tiny") -> "tuple[int, bytes]":
    connection = http.client.HTTPConnection("127.0.0.1", 11434, timeout=60)
    try:
        connection.request("POST", "/api/chat", question(model))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def load() -> None:
    counts: collections.Counter[str] = collections.Counter()
    first, enough, longest = threading.Event(), threading.Event(), [0.0] * 4

    def run(number: int) -> None:
        while not enough.is_set():
            begun = time.monotonic()
            try:
                status, _body = ask()
                outcome = str(status)
            except OSError as error:
                outcome = type(error).__name__
                time.sleep(0.01)
            except http.client.HTTPException as error:
                outcome = type(error).__name__
            counts[outcome] += 1
            longest[number] = max(longest[number], time.monotonic() - begun)
            if outcome == "200":
                first.set()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    first.wait(60)
    print("answered", flush=True)
    sys.stdin.read()
    enough.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"counts": counts, "longest_s": round(max(longest), 3)}))


if sys.argv[1] == "once":
    print(ask(sys.argv[2])[1].decode())
else:
    load()
