"""A package index on loopback with tiny wheels (PEP 503): what pip installs engines from in tests."""

import http.server
import io
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
ENTRY = "vllm/entrypoints/launchers/api_server/entry.py"
"""What the daemon looks for in an engine."""


def make_wheel(name: str, version: str, *modules: str, requires: Sequence[str] = ()) -> tuple[str, bytes]:
    """Return the file's name and content of a wheel with empty modules."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = dict.fromkeys(modules, "")
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    files[f"{info}/WHEEL"] = WHEEL
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"{stem}-py3-none-any.whl", content.getvalue()


def make_engine_wheel(distribution: str, version: str, *requires: str) -> tuple[str, bytes]:
    """The wheel of an engine that the daemon finds complete; it cannot be run."""
    folders = [str(path) for path in Path(ENTRY).parents if path != Path()]
    return make_wheel(distribution, version, *(f"{each}/__init__.py" for each in folders), ENTRY, requires=requires)


class Index:
    """Serves ``/NAME/`` and the wheels in it while it is open; ``asked`` has the paths, in order."""

    def __init__(self) -> None:
        self.wheels: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                name, _, file = self.path.strip("/").partition("/")
                wheels = index.wheels.get(name)
                if wheels is None or (file and file not in wheels):
                    self.send_error(404)
                    return
                page = "".join(f'<a href="/{name}/{each}">{each}</a>\n' for each in wheels).encode()
                body = wheels[file] if file else page
                self.send_response(200)
                self.send_header("Content-Type", "application/zip" if file else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def add(self, name: str, version: str, *modules: str, requires: Sequence[str] = ()) -> None:
        file, content = make_wheel(name, version, *modules, requires=requires)
        self.wheels.setdefault(name, {})[file] = content

    def add_engine(self, distribution: str, version: str, *requires: str) -> None:
        file, content = make_engine_wheel(distribution, version, *requires)
        self.wheels.setdefault(distribution, {})[file] = content

    def __enter__(self) -> "Index":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def write_lock(folder: Path, *pins: str) -> Path:
    """A lock file with these lines."""
    lock = folder / f"{'-'.join(pins).replace('==', '-')}.lock"
    lock.write_text("# made for a test\n" + "".join(f"{pin}\n" for pin in pins))
    return lock
