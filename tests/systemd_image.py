"""An image with systemd as its init: this host's Debian release, minimal, made once by mmdebstrap."""

import os
import platform
import runpy
import subprocess
import tempfile
from pathlib import Path

from tests.images import docker_archive

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "test/systemd:latest"
#: Part of the file's name: another list is another image.
PACKAGES = "systemd-sysv,dbus"
_TRIMMED = ("doc", "man", "locale", "info", "zoneinfo", "bash-completion", "zsh")


def systemd_archive():
    """The archive, built unless it is there: half a minute and 60 MB of packages."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    target = ROOT / "build" / f"{PACKAGES.replace(',', '-')}-{release}.tar"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".systemd-") as scratch:
            rootfs, archive = Path(scratch) / "rootfs.tar", Path(scratch) / "image.tar"
            _bootstrap(release, rootfs)
            docker_archive(archive, rootfs.read_bytes(), REFERENCE, {"Cmd": ["bash"]})
            archive.rename(target)
    return target


def _bootstrap(release, rootfs):
    sources = runpy.run_path(str(ROOT / "scripts" / "build_demo_image.py"))["apt_sources"]()
    command = ["mmdebstrap", "--variant=minbase", "--quiet", f"--include={PACKAGES}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _TRIMMED]
    # Journals are kept on the disk where this directory is.
    command += ['--customize-hook=rm -rf "$1"/var/cache/* "$1"/var/log/*; mkdir "$1"/var/log/journal']
    subprocess.run([*command, release, str(rootfs), *sources], check=True, timeout=300, env=os.environ)
