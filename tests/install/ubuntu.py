"""Ubuntu trees as JetPack 5, 6 and 7 are made of, and wheels with a Python for all of them.

Ubuntu 20.04 is the oldest: what is compiled there runs on the later ones. That takes about half an hour on two cores;
where MOE2_TEST_TREE names a folder, everything stays there. A standalone CPython comes from MOE2_TEST_PYTHON, an
archive (install_only) as on a user's host; without one it is built in the tree from Debian's source, with its libraries
beside it, and packed in the same shape.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.install.fakehost import CHECKOUT
from tests.install.machine import run

MIRROR = "http://archive.ubuntu.com/ubuntu"
OLDEST = "focal"
_PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,python3-minimal,python3,libgomp1,ca-certificates"
_BUILD_PACKAGES = (
    "build-essential zlib1g-dev libssl-dev libffi-dev libsqlite3-dev libbz2-dev liblzma-dev patchelf xz-utils"
)
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# All Ubuntus have one script in debootstrap; that of a release which came later is missing under its own name.
_SCRIPT = "/usr/share/debootstrap/scripts/gutsy"
_BUILD_PYTHON = r"""
cd /src/Python-*/
./configure --prefix=/opt/python --disable-test-modules LDFLAGS=-Wl,-rpath,/opt/python/lib
make -j2 && make install
for name in libssl.so.1.1 libcrypto.so.1.1 libffi.so.7 libsqlite3.so.0 libbz2.so.1.0 liblzma.so.5 libz.so.1; do
  cp -L "$(ldconfig -p | sed -nE "s|.*$name .*=> ||p" | head -n 1)" /opt/python/lib/
done
for file in /opt/python/lib/python3.*/lib-dynload/*.so; do patchelf --set-rpath '$ORIGIN/../..' "$file"; done
for file in libssl.so.1.1 libsqlite3.so.0; do patchelf --set-rpath '$ORIGIN' "/opt/python/lib/$file"; done
rm -rf /opt/python/lib/python3.*/test /opt/python/lib/python3.*/config-*
"""
_BUILD_WHEELS = r"""
export PIP_CERT=/etc/ssl/certs/ca-certificates.crt HOME=/root LANG=C.UTF-8 CMAKE_ARGS=-DLLAVA_BUILD=OFF
/opt/python/bin/python3 -m venv --clear /src/venv
cd /src/moe2
/src/venv/bin/python -m pip wheel --quiet --constraint constraints.txt --wheel-dir /src/wheels \
  '.[agent,coordinator]' hatchling
rm -f /src/wheels/moe2-*
"""


def ubuntu_tree(folder: Path, release: str) -> Path:
    """A minimal Ubuntu. Skips where its mirror cannot be reached."""
    tree = folder / release
    complete = folder / f"{release}-complete"
    if not complete.exists():
        shutil.rmtree(tree, ignore_errors=True)
        keyring = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
        trust = [f"--keyring={keyring}"] if keyring.exists() else ["--no-check-gpg"]
        made = subprocess.run(
            [
                *("debootstrap", *trust, "--variant=minbase", "--components=main,universe", f"--include={_PACKAGES}"),
                *(release, str(tree), MIRROR, _SCRIPT),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode and not (tree / "usr").exists():
            pytest.skip(f"Ubuntu cannot be fetched from {MIRROR}: {made.stderr.strip()[-200:]}")
        assert made.returncode == 0, made.stdout[-2000:]
        complete.touch()
    return tree


def ubuntu_wheels(folder: Path) -> Path:
    """A folder for --wheels: all wheels, llama.cpp among them, and a standalone CPython that they are for."""
    wanted = b"".join((CHECKOUT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    target = folder / f"ubuntu-wheels-{sha256(wanted).hexdigest()[:12]}"
    if not (target / "complete").exists():
        build = _build_tree(folder)
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(build / "src/wheels", ignore_errors=True)
        _add_source(build / "src/moe2")
        _inside(build, _BUILD_WHEELS)
        shutil.copytree(build / "src/wheels", target)
        _pack_python(build, target)
        (target / "complete").touch()
    return target


def _build_tree(folder: Path) -> Path:
    """The oldest tree with compilers and a current Python in /opt/python."""
    build = folder / f"{OLDEST}-build"
    if not (build / "complete").exists():
        base = ubuntu_tree(folder, OLDEST)
        shutil.rmtree(build, ignore_errors=True)
        run("cp", "--archive", str(base), str(build))
        (build / "src").mkdir()
        shutil.copy("/etc/resolv.conf", build / "etc/resolv.conf")
        (build / _CERTIFICATES).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"/{_CERTIFICATES}", build / _CERTIFICATES)
        _inside(
            build,
            "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
            f"{_BUILD_PACKAGES}",
        )
        if brought := os.environ.get("MOE2_TEST_PYTHON"):
            run("tar", "-xzf", brought, "-C", str(build / "opt"))
        else:
            _fetch_source(build / "src")
            _inside(build, _BUILD_PYTHON)
        (build / "complete").touch()
    return build


def _fetch_source(target: Path) -> None:
    """Debian's source of its Python, through apt."""
    lists = target / "apt"
    (lists / "lists/partial").mkdir(parents=True)
    (lists / "cache/archives/partial").mkdir(parents=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (lists / "sources.list").write_text(f"deb-src [signed-by={keyring}] http://deb.debian.org/debian bookworm main\n")
    options = [
        *("-o", f"Dir::Etc::SourceList={lists}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
        *("-o", f"Dir::State::Lists={lists}/lists", "-o", f"Dir::Cache={lists}/cache"),
    ]
    run("apt-get", *options, "update")
    subprocess.run(
        ["apt-get", *options, "source", "--download-only", "python3.11"], cwd=target, check=True, capture_output=True
    )
    [archive] = target.glob("python3.11_*.orig.tar.*")
    run("tar", "-xf", str(archive), "-C", str(target))


def _pack_python(build: Path, target: Path) -> None:
    if brought := os.environ.get("MOE2_TEST_PYTHON"):
        shutil.copy(brought, target)
        return
    version = run(
        "chroot", str(build), "/opt/python/bin/python3", "-c", "import platform; print(platform.python_version())"
    )
    name = f"cpython-{version.strip()}+20230208-x86_64-unknown-linux-gnu-install_only.tar.gz"
    run("tar", "-czf", str(target / name), "-C", str(build / "opt"), "python")


def _add_source(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("agent", "common", "coordinator", "dev"):
        shutil.copytree(CHECKOUT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, target / name)


def _inside(tree: Path, script: str) -> None:
    run("mount", "--types", "proc", "proc", str(tree / "proc"))
    try:
        # This machine's folder for temporary files is not in the tree.
        run("env", "--unset=TMPDIR", "chroot", str(tree), "bash", "-euxc", script)
    finally:
        run("umount", str(tree / "proc"))


def need_x86() -> None:
    """Skip elsewhere: Ubuntu's mirror for other processors is another one."""
    if os.uname().machine != "x86_64" or sys.platform != "linux":
        pytest.skip("the trees are of x86-64")
