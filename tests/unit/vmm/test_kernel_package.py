"""The distribution's package is found and fetched without root, unpacked in one pass, or clearly refused."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
import time

import pytest

from microsandbox.errors import KernelError
from microsandbox.vmm import kernel_package
from microsandbox.vmm.architecture import X86_64
from microsandbox.vmm.modules import REQUIRED, MissingModulesError, ModuleTree, select_modules
from tests.unit.vmm.kernels import (
    PAYLOADS,
    VERSION,
    build_package,
    bzimage,
    elf_kernel,
    module,
    required_modules,
    write_modules,
)

DEPMOD = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin")


def silent(_):
    pass


def parts_of(packages, directory):
    return kernel_package.from_packages(packages, "x86_64", directory, silent)


def kernel_tree(directory, modules, *, lib="lib", suffix=".ko"):
    (directory / "boot").mkdir(parents=True)
    (directory / f"boot/vmlinuz-{VERSION}").write_bytes(bzimage(PAYLOADS["zstd"](elf_kernel())))
    if modules is not None:
        write_modules(directory / lib / "modules" / VERSION, modules, suffix=suffix)
    return directory


def test_the_real_package_gives_the_kernel_and_only_the_needed_modules_in_one_pass(real_parts):
    names = [module.name for module in real_parts.parts.modules]
    assert real_parts.parts.kernel.startswith(b"\x7fELF")
    assert real_parts.parts.version in real_parts.parts.source
    assert "overlay" in names
    assert len(names) == len(set(names)) <= 20
    assert len(real_parts.reports) == 1, "each pass over the package takes seconds"


def test_what_is_unpacked_of_the_real_package_is_small(real_parts):
    files = [path for path in real_parts.directory.rglob("*") if path.is_file()]
    assert len(files) < 40
    assert sum(path.stat().st_size for path in files) < 40 << 20


@pytest.mark.skipif(DEPMOD is None, reason="no depmod")
def test_the_order_agrees_with_depmod(real_parts, tmp_path):
    """The packages lack modules.dep; what is read instead must say the same."""
    parts = real_parts.parts
    directory = tmp_path / "lib/modules" / parts.version
    shutil.copytree(real_parts.directory / "unpacked" / parts.version, directory)
    (directory / "modules.order").touch()
    subprocess.run([DEPMOD, "-b", tmp_path, parts.version], check=True, stderr=subprocess.DEVNULL)
    assert (directory / "modules.dep").stat().st_size > 0
    tree = ModuleTree(parts.version, directory)
    assert {each.name for each in select_modules(tree)} == {each.name for each in parts.modules}
    position = {each.name: number for number, each in enumerate(parts.modules)}
    pairs = [(each.name, needed) for each in parts.modules for needed in tree.dependencies(each)]
    assert len(pairs) > 5
    assert [pair for pair in pairs if position[pair[1]] > position[pair[0]]] == []


@pytest.mark.parametrize(
    ("lib", "suffix", "compression"),
    [("lib", ".ko", "gzip"), ("usr/lib", ".ko.xz", "xz"), ("usr/lib", ".ko.zst", "zstd")],
)
def test_packages_of_every_layout_and_compression_are_read(tmp_path, lib, suffix, compression):
    tree = kernel_tree(tmp_path / "tree", required_modules(), lib=lib, suffix=suffix)
    package = build_package(tmp_path, tree, f"linux-image-{VERSION}", compression=compression)
    parts = parts_of([package], tmp_path)
    assert parts.version == VERSION
    assert [module.name for module in parts.modules] == list(REQUIRED)


def test_unexpected_dependencies_are_fetched_from_the_package_in_more_passes(tmp_path):
    modules = required_modules() | {
        "kernel/overlay": module("new"),
        "kernel/new": module("newer"),
        "kernel/newer": module(),
    }
    package = build_package(tmp_path, kernel_tree(tmp_path / "tree", modules), f"linux-image-{VERSION}")
    assert [module.name for module in parts_of([package], tmp_path).modules][-3:] == [
        "newer",
        "new",
        "overlay",
    ]


def test_missing_modules_are_named(tmp_path):
    modules = required_modules()
    del modules["kernel/squashfs"], modules["kernel/overlay"]
    package = build_package(tmp_path, kernel_tree(tmp_path / "tree", modules), f"linux-image-{VERSION}")
    with pytest.raises(MissingModulesError, match="overlay, squashfs"):
        parts_of([package], tmp_path)


def test_a_truncated_package_is_refused(real_package, tmp_path):
    content = real_package[0].read_bytes()
    damaged = tmp_path / "linux-image-damaged.deb"
    damaged.write_bytes(content[: len(content) // 20])
    with pytest.raises(KernelError, match="damaged"):
        parts_of([damaged], tmp_path)


def test_a_package_with_a_damaged_middle_is_refused(tmp_path):
    tree = kernel_tree(tmp_path / "tree", required_modules())
    package = build_package(tmp_path, tree, f"linux-image-{VERSION}")
    content = bytearray(package.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 50] = bytes(50)
    package.write_bytes(content)
    with pytest.raises(KernelError, match="damaged"):
        parts_of([package], tmp_path)


@pytest.mark.parametrize("content", [b"", b"no package at all"])
def test_what_is_no_package_is_refused(tmp_path, content):
    (tmp_path / "some.deb").write_bytes(content)
    with pytest.raises(KernelError, match="damaged or no Debian package"):
        parts_of([tmp_path / "some.deb"], tmp_path)


def test_a_package_without_a_kernel_is_refused(tmp_path):
    (tmp_path / "tree/usr/share/doc").mkdir(parents=True)
    package = build_package(tmp_path, tmp_path / "tree", "linux-doc")
    with pytest.raises(KernelError, match="no kernel image"):
        parts_of([package], tmp_path)


def test_an_oversized_member_is_refused_before_it_is_written(tmp_path, monkeypatch):
    tree = kernel_tree(tmp_path / "tree", required_modules())
    package = build_package(tmp_path, tree, f"linux-image-{VERSION}")
    monkeypatch.setattr(kernel_package, "MAX_KERNEL_BYTES", 100)
    with pytest.raises(KernelError, match="more than the 100 it may have"):
        parts_of([package], tmp_path)
    assert not (tmp_path / "unpacked/vmlinuz").exists()


# apt, with a repository of our own


class Repository:
    """Served over HTTP, and an apt that knows nothing else."""

    def __init__(self, root):
        self.packages = root / "packages"
        self.packages.mkdir()
        self._root = root
        handler = functools.partial(_Quiet, directory=str(self.packages))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        for directory in ("etc", "state/lists/partial", "cache/archives/partial"):
            (root / directory).mkdir(parents=True)
        (root / "state/status").touch()
        self.configuration = root / "apt.conf"
        self.point_at(self.url)
        settings = {
            "Dir::Etc": f"{root}/etc",
            "Dir::Etc::SourceList": f"{root}/etc/sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State": f"{root}/state",
            "Dir::State::status": f"{root}/state/status",
            "Dir::Cache": f"{root}/cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
        }
        lines = [f'{name} "{value}";\n' for name, value in settings.items()]
        self.configuration.write_text("".join(lines))

    def point_at(self, url):
        (self._root / "etc/sources.list").write_text(f"deb [trusted=yes] {url} ./\n")

    def add(self, tree, name, depends="", release="1.0"):
        package = build_package(self.packages, tree, name, depends=depends)
        renamed = package.with_name(package.name.replace("1.0", release))
        package.rename(renamed)
        self.index()

    def index(self):
        entries = []
        for package in sorted(self.packages.glob("*.deb")):
            control = subprocess.run(["dpkg-deb", "-f", package], capture_output=True, check=True, text=True)
            checksum = subprocess.run(["sha256sum", package], capture_output=True, check=True, text=True)
            entries.append(
                f"{control.stdout.strip()}\nFilename: ./{package.name}\nSize: {package.stat().st_size}\n"
                f"SHA256: {checksum.stdout.split()[0]}\n"
            )
        (self.packages / "Packages").write_text("\n".join(entries))

    def update(self):
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "apt").mkdir()
    made = Repository(tmp_path / "apt")
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("APT_CONFIG", str(made.configuration))
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def work(tmp_path):
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def like_ubuntu(repository, root):
    """The image, its modules and the package that stands for both are three packages."""
    repository.add(
        kernel_tree(root / "image", None), f"linux-image-{VERSION}", f"linux-modules-{VERSION}, kmod"
    )
    modules = write_modules(root / f"modules/lib/modules/{VERSION}", required_modules(), suffix=".ko.zst")
    repository.add(modules.parents[2], f"linux-modules-{VERSION}")
    (root / "meta").mkdir()
    repository.add(root / "meta", "linux-image-virtual", f"linux-image-{VERSION}")


def test_modules_that_are_a_package_of_their_own_are_found(repository, work, tmp_path):
    like_ubuntu(repository, tmp_path)
    repository.update()
    parts = kernel_package.from_distribution(X86_64, work, silent)
    assert parts.version == VERSION
    assert parts.source == f"package linux-image-{VERSION}_1.0_amd64"
    assert len(parts.modules) == len(REQUIRED)


def test_missing_package_lists_are_fetched_without_touching_the_systems(repository, work, tmp_path):
    like_ubuntu(repository, tmp_path)
    before = sorted((tmp_path / "apt/state").rglob("*"))
    reports = []
    assert kernel_package.from_distribution(X86_64, work, reports.append).version == VERSION
    assert "refreshing the package lists" in reports
    assert sorted((tmp_path / "apt/state").rglob("*")) == before


def test_lists_older_than_the_mirror_are_refreshed(repository, work, tmp_path):
    like_ubuntu(repository, tmp_path)
    repository.update()
    old = repository.packages / f"linux-image-{VERSION}_1.0_amd64.deb"
    old.rename(old.with_name(old.name.replace("_1.0_", "_2.0_")))
    repository.index()
    assert kernel_package.from_distribution(X86_64, work, silent).version == VERSION


def test_a_package_that_is_not_what_the_lists_promise_is_refused(repository, work, tmp_path):
    like_ubuntu(repository, tmp_path)
    repository.update()
    package = repository.packages / f"linux-image-{VERSION}_1.0_amd64.deb"
    content = package.read_bytes()
    package.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(KernelError, match="(?s)apt-get failed.*Hash Sum mismatch"):
        kernel_package.from_distribution(X86_64, work, silent)


def test_a_distribution_without_the_package_is_told(repository, work):
    repository.index()
    with pytest.raises(KernelError, match="apt knows none of linux-image-amd64, linux-image-virtual"):
        kernel_package.from_distribution(X86_64, work, silent)


def test_without_a_network_the_error_comes_in_seconds(repository, work, tmp_path):
    like_ubuntu(repository, tmp_path)
    repository.point_at("http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(KernelError, match="127.0.0.1:9"):
        kernel_package.from_distribution(X86_64, work, silent)
    assert time.monotonic() - started < 10


def test_a_host_without_apt_is_told(work, monkeypatch, tmp_path):
    monkeypatch.setattr("microsandbox.tools._EXTRA_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="apt-get was not found"):
        kernel_package.from_distribution(X86_64, work, silent)


def test_no_process_is_left_when_reading_is_given_up(real_package):
    """In a process of its own, whose children are surely ours."""
    script = (
        "import sys, pathlib, os\n"
        "from microsandbox.vmm.kernel_package import _members\n"
        "try:\n"
        "    with _members(pathlib.Path(sys.argv[1])) as archive:\n"
        "        next(iter(archive))\n"
        "        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "try:\n"
        "    os.waitpid(-1, 0)\n"
        "except ChildProcessError:\n"
        "    print('none left')\n"
    )
    command = [sys.executable, "-c", script, str(real_package[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "none left\n"
