"""An upgrade under a real systemd: no restart for it, no model unloaded, nobody refused."""

import json
import time

from tests.systemd.conftest import Figures
from tests.systemd.service import Service


def test_an_upgrade_under_load_keeps_the_model_and_refuses_nobody(service: Service, figures: Figures) -> None:
    assert service.chat()["message"]["content"]
    (before,), daemon = service.ps(), service.main_pid()
    leaves, restarts = service.leaves(), service.show("NRestarts")
    assert "group vllama" in service.ctl("bob", "upgrade").stderr
    load = service.begin_load()
    done = service.ctl("ann", "upgrade")
    begun = time.monotonic()
    answered = service.chat()
    took_s = time.monotonic() - begun
    told = json.loads(load.communicate(timeout=60)[0])
    assert done.returncode == 0 and "kept tiny:latest" in done.stderr, done.stderr + service.journal()[-4000:]
    assert set(told["counts"]) == {"200"}, told
    # The same engine answers, at once: it was not loaded for it.
    (after,) = service.ps()
    assert (after["pid"], after["incarnation"]) == (before["pid"], before["incarnation"])
    assert answered["load_duration"] < 1e9
    # For systemd nothing ended: the same main process, up, and its children where they were.
    assert service.main_pid() == daemon and service.show("NRestarts") == restarts
    service.wait("it is told that the upgrade is over", lambda: service.show("SubState") == "running")
    service.wait("a zygote is warm again", lambda: len(service.leaves()) == len(leaves))
    assert before["pid"] in {one["pid"] for one in service.ps()}
    (taken,) = service.entries("EVENT=daemon.taken_over")[-1:]
    said = dict(field.split("=") for field in taken["MESSAGE"].split() if "=" in field)
    assert (said["models"], said["ended"]) == ("1", "0")
    figures.tell(
        f"upgrade under load: the faces were away for {said['away_s']} s, {told['counts']['200']} answers, the "
        f"longest took {told['longest_s']} s; the model's next answer took {took_s:.2f} s with its client's start"
    )


def test_the_watchdog_and_a_kill_hold_for_the_successor_too(service: Service) -> None:
    assert service.chat()["message"]["content"]
    assert service.ctl("ann", "upgrade").returncode == 0
    before = service.main_pid()
    (worker,) = service.ps()
    # It pings the watchdog of the unit (4 s here), which would end it otherwise.
    time.sleep(6)
    assert service.main_pid() == before and [one["pid"] for one in service.ps()] == [worker["pid"]]
    service.systemctl("kill", "--signal=KILL", "--kill-whom=main", "vllamad.service")
    assert service.chat()["message"]["content"]
    assert service.main_pid() not in {0, before}
    service.wait("the model is loaded again", lambda: [one["state"] for one in service.ps()] == ["READY"])
    assert service.ps()[0]["pid"] != worker["pid"], "engines end with the daemon, also with one that took over"
