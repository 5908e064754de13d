"""Only the modules that are needed, each after those it depends on; what is missing is named."""

import shutil

import pytest

from microsandbox.errors import KernelError
from microsandbox.vmm import modules
from microsandbox.vmm.modules import (
    MissingModulesError,
    Module,
    ModuleTree,
    accepts_unsigned,
    module_name,
    select_modules,
    without_signature,
)
from tests.unit.vmm.kernels import MODULE_FORMATS, VERSION, module, signed, write_modules

DEP = """\
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc32c-generic.ko
kernel/lib/crc16.ko:
kernel/lib/crc32c-generic.ko:
kernel/sound/snd.ko:
"""
FILES = {
    "kernel/fs/ext4/ext4": module("jbd2", "crc16"),
    "kernel/fs/jbd2/jbd2": module("crc32c_generic"),
    "kernel/lib/crc16": module(),
    "kernel/lib/crc32c-generic": module(),
    "kernel/sound/snd": module(),
}
ORDER = ["crc32c_generic", "jbd2", "crc16", "ext4"]


def chosen(directory, *required, preferred=None):
    tree = ModuleTree(VERSION, directory)
    return [module.name for module in select_modules(tree, required, preferred or {})]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("crc32c-intel.ko", "crc32c_intel"),
        ("9p.ko.xz", "9p"),
        ("a.ko.gz", "a"),
        ("a.ko.zst", "a"),
        ("a.ko.bz2", None),
        ("modules.dep", None),
        ("../a.ko", None),
    ],
)
def test_module_names_are_the_kernels(file, name):
    assert module_name(file) == name


def test_the_order_is_that_of_modules_dep(tmp_path):
    # The files' own lists are empty here, so the order can only come from the index.
    files = {name: module() for name in FILES}
    assert chosen(write_modules(tmp_path, files, dep=DEP), "ext4") == ORDER


def test_without_modules_dep_the_modules_say_what_they_need(tmp_path):
    assert chosen(write_modules(tmp_path, FILES), "ext4") == ORDER


@pytest.mark.parametrize("suffix", MODULE_FORMATS)
def test_compressed_modules_are_unpacked(tmp_path, suffix):
    write_modules(tmp_path, FILES, suffix=suffix, dep=DEP.replace(".ko", suffix))
    found = select_modules(ModuleTree(VERSION, tmp_path), ["ext4"], {})
    assert {each.name: each.content for each in found} == {
        "ext4": FILES["kernel/fs/ext4/ext4"],
        "jbd2": FILES["kernel/fs/jbd2/jbd2"],
        "crc16": module(),
        "crc32c_generic": module(),
    }


def test_built_in_modules_are_left_out(tmp_path):
    write_modules(tmp_path, FILES, builtin=("lib/crc16", "lib/crc32c-generic", "drivers/virtio_pci"))
    assert chosen(tmp_path, "virtio_pci", "ext4") == ["jbd2", "ext4"]


def test_preferred_modules_come_first_where_they_exist(tmp_path):
    write_modules(tmp_path, {**FILES, "kernel/lib/fast": module("snd")})
    names = chosen(tmp_path, "ext4", preferred={"ext4": ("fast", "not_there")})
    assert names == ["snd", "fast", *ORDER]


def test_all_missing_modules_are_named_at_once(tmp_path):
    write_modules(tmp_path, {"kernel/a": module("b", "gone"), "kernel/b": module("lost")})
    with pytest.raises(
        MissingModulesError, match=r"kernel 6\.8\.0-1-generic lacks.*: absent, gone, lost"
    ) as caught:
        chosen(tmp_path, "a", "absent")
    assert caught.value.names == ("absent", "gone", "lost")


def test_modules_that_need_each_other_do_not_hang_us(tmp_path):
    write_modules(tmp_path, {"kernel/a": module("b"), "kernel/b": module("a")})
    assert sorted(chosen(tmp_path, "a")) == ["a", "b"]


def test_a_module_of_another_kernel_is_refused(tmp_path):
    write_modules(tmp_path, {"kernel/a": module(version="5.10.0-1")})
    with pytest.raises(KernelError, match=r"a\.ko is for kernel '5\.10\.0-1 .*not for 6\.8\.0-1-generic"):
        chosen(tmp_path, "a")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ko", b"no ELF file"),
        ("a.ko", module()[:90]),
        ("a.ko", module().replace(b".modinfo", b".madinfo")),
        ("a.ko.xz", MODULE_FORMATS[".ko.xz"](module())[:-30]),
    ],
)
def test_a_damaged_module_is_refused_by_its_path(tmp_path, name, content):
    write_modules(tmp_path, {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KernelError, match=f"{tmp_path}/{name} cannot be read"):
        chosen(tmp_path, "a")


def test_a_module_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "MAX_MODULE_BYTES", 1000)
    write_modules(tmp_path, {"a": module(padding=1000)}, suffix=".ko.gz")
    with pytest.raises(KernelError, match="larger than 1000 bytes"):
        chosen(tmp_path, "a")


def test_a_module_that_the_index_names_but_that_is_gone_is_an_error(tmp_path):
    write_modules(tmp_path, FILES, dep=DEP)
    shutil.rmtree(tmp_path / "kernel/lib")
    with pytest.raises(KernelError, match=r"crc32c-generic\.ko cannot be read"):
        chosen(tmp_path, "ext4")


def test_no_module_directory_is_an_error_that_names_it(tmp_path):
    with pytest.raises(KernelError, match="no module directory at"):
        ModuleTree(VERSION, tmp_path / "none")


@pytest.mark.parametrize("signature", [b"", b"x", bytes(5000)])
def test_a_signature_is_taken_off(signature):
    assert without_signature(Module("a", signed(module(), signature))) == Module("a", module())


@pytest.mark.parametrize("content", [module(), b"~Module signature appended~\n", signed(b"")[5:]])
def test_what_has_no_complete_signature_stays_as_it_is(content):
    assert without_signature(Module("a", content)).content == content


@pytest.mark.parametrize(
    ("configuration", "accepted"),
    [
        (b"CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\n", True),
        (b"# CONFIG_MODULE_SIG is not set\n", True),
        (b"CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_FORCE=y\n# CONFIG_MODULE_SIG_SHA1 is not set\n", False),
        (b"", False),
    ],
)
def test_signatures_are_dispensable_only_where_the_kernel_says_so(configuration, accepted):
    assert accepts_unsigned(configuration) is accepted
