"""Write the rpm's spec and the container's recipe from the list of files.py, so that all packages hold the same.

Usage: python -m scripts.package.recipes [--check]     (--check: write nothing, exit 1 if one is stale)
"""

import sys
from collections.abc import Callable, Sequence

from scripts.package.files import DEBIAN_ENGINE_NEEDS, DEBIAN_NEEDS, FILES, HOME, NAME, ROOT, File
from vllama import __version__

MADE_BY = "# Made by scripts/package/recipes.py from the list in scripts/package/files.py; change those."
PYTHON = "python3.11"

SPEC = """\
{made_by}
#
#   git archive --prefix={name}-{version}/ -o ~/rpmbuild/SOURCES/{name}-{version}.tar.gz HEAD
#   rpmbuild -bb packaging/rpm/{name}.spec
#
# The build fetches the packages of requirements/daemon.lock with pip.
Name:           {name}
Version:        {version}
Release:        1%{{?dist}}
Summary:        Language models behind Ollama's, OpenAI's and Anthropic's APIs
License:        Apache-2.0
Source0:        %{{name}}-%{{version}}.tar.gz
BuildRequires:  {python}, {python}-pip, systemd-rpm-macros
Requires:       {python}, ca-certificates
Recommends:     {python}-devel, gcc, numactl-libs
%{{?systemd_requires}}

# Wheels are taken as they are published, compiled for where they will be.
%global debug_package %{{nil}}
%global __brp_python_bytecompile %{{nil}}
%global __brp_strip %{{nil}}
%global __brp_mangle_shebangs %{{nil}}
%global __requires_exclude_from ^{home}/.*$
%global __provides_exclude_from ^{home}/.*$

%description
vllamad supervises vLLM workers, one for each loaded model, and answers the
clients of Ollama, OpenAI and Anthropic. The engine, vLLM, is not in this
package: `vllamactl engine install` brings it.

%prep
%autosetup

%build

%install
{python} -m scripts.package.stage --rpm %{{buildroot}}

%pre
# The file itself comes after this: owners are looked up when files are unpacked.
systemd-sysusers --replace=/usr/lib/sysusers.d/{name}.conf - <<'EOF' || :
{sysusers}EOF

%post
systemd-tmpfiles --create {name}.conf || :
mkdir -p -m 0755 /var/lib/vllama/engines
%systemd_post vllamad.socket vllamad.service

%preun
%systemd_preun vllamad.socket vllamad.service

%postun
%systemd_postun vllamad.service

%posttrans
# Models stay loaded. Where that cannot be (it says why), they are loaded again. With a configuration that is refused
# (78), the version before would be ended for nothing: it serves on.
if systemctl --quiet is-active vllamad.service; then
    vllamactl upgrade || [ $? -eq 78 ] || systemctl restart vllamad.service || :
fi

%files
%dir /etc/{name}
%dir /usr/share/doc/{name}
%dir /usr/share/doc/{name}/examples
{files}
"""

CONTAINERFILE = """\
{made_by}
#
#   podman build -f packaging/container/Containerfile -t {name} .            (docker build likewise)
#   podman build -f packaging/container/Containerfile -t {name}:cpu --build-arg ENGINE=cpu .
#
# How it is run: docs/how-to/container.md.
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends {python} {python}-venv ca-certificates
WORKDIR /src
COPY . .
RUN {python} -m scripts.package.stage /stage

FROM debian:12-slim
# What the engine is built for: cuda or cpu.
ARG ENGINE=cuda
RUN apt-get update \\
 && apt-get install -y --no-install-recommends {needs} \\
 && rm -rf /var/lib/apt/lists/*
# The files of the package, all of them: {home}, /usr/bin/vllamad, /usr/bin/vllamactl and the rest of the list.
COPY --from=build /stage/ /
RUN vllamactl engine install --"$ENGINE" --state-dir /opt/vllama
RUN useradd --system --home-dir /var/lib/vllama --shell /usr/sbin/nologin vllama \\
 && install -d -o vllama -g vllama -m 0750 /var/lib/vllama /run/vllama
USER vllama
# A container has one network of its own; who reaches it is said by the port that is published. Sockets lie in the
# container, not in the volume, whose file system may not have any.
ENV VLLAMA_HOST=0.0.0.0:11434 \\
    VLLAMA_STATE_DIR=/var/lib/vllama \\
    VLLAMA_RUNTIME_DIR=/run/vllama \\
    VLLAMA_SOCKET=/run/vllama/vllamad.sock \\
    VLLAMA_ENGINE_PYTHON=/opt/vllama/engines/current/bin/python
VOLUME /var/lib/vllama
EXPOSE 11434
STOPSIGNAL SIGTERM
# 503 while it starts, leaves or has no engine. podman keeps this with `--format docker` only.
HEALTHCHECK --start-period=30s CMD ["{home}/bin/python3", "-Ic", \\
    "import urllib.request as r; r.urlopen('http://127.0.0.1:11434/health', timeout=9)"]
ENTRYPOINT ["/usr/bin/vllamad"]
"""


def spec() -> str:
    """packaging/rpm/vllama.spec."""
    files = "\n".join(line for file in FILES if (line := _spec_line(file)))
    values = {"name": NAME, "version": __version__, "python": PYTHON, "home": HOME}
    values["sysusers"] = (ROOT / f"systemd/{NAME}.sysusers").read_text()
    return SPEC.format(**values, files=files, made_by=MADE_BY)


def _spec_line(file: File) -> str:
    place = file.place(is_rpm=True)
    if not place:
        return ""
    if file.is_config:
        return f"%config(noreplace) {place}"
    if file.source == "<copyright>":
        return f"%license {place}"
    if place.startswith("/usr/share/doc/"):
        return f"%doc {place}"
    return f"%attr({file.mode:04o}, root, root) {place}" if file.mode != 0o644 else place


def containerfile() -> str:
    """packaging/container/Containerfile."""
    needs = [PYTHON, f"{PYTHON}-venv", f"{PYTHON}-dev"]
    needs += [need.partition(" ")[0] for need in (*DEBIAN_NEEDS, *DEBIAN_ENGINE_NEEDS)]
    return CONTAINERFILE.format(name=NAME, python=PYTHON, home=HOME, needs=" ".join(needs), made_by=MADE_BY)


RECIPES: dict[str, Callable[[], str]] = {
    f"packaging/rpm/{NAME}.spec": spec,
    "packaging/container/Containerfile": containerfile,
}


def stale() -> list[str]:
    """The recipes that are not what they would be now."""
    return [
        name for name, make in RECIPES.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != make()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write the recipes, or check them."""
    names = stale()
    for name in names:
        if "--check" in arguments:
            print(f"{name} is stale: run python -m scripts.package.recipes", file=sys.stderr)
        else:
            (ROOT / name).write_text(RECIPES[name]())
            print(f"wrote {name}")
    return 1 if names and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
