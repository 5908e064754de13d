"""The store of templates: a template is there whole or not at all, and what is damaged goes."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from msgspec.structs import replace

from microsandbox.errors import TemplateError
from microsandbox.store.files import PARTIAL_PREFIX, partial_path
from microsandbox.template import store as stores
from microsandbox.template.store import RAM, RETRY_AFTER, STATE, UNUSED_FOR, UPPER, discard_template
from tests.unit.template.conftest import DESCRIPTION, KEYS, write_partial


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def age(template, seconds):
    then = time.time() - seconds
    os.utime(template.directory / "manifest", (then, then))


# what is whole


def test_a_published_template_is_found_with_all_that_is_known_of_it(store, publish):
    assert store.find(KEYS.one) is None
    made = publish()
    found = store.find(KEYS.one)
    assert found == made
    assert (found.key, found.description) == (KEYS.one, DESCRIPTION)
    assert abs(found.created_at - time.time()) < 60
    assert [path.is_file() for path in (found.ram, found.state, found.upper)] == [True] * 3
    assert store.verify(found) == []
    assert names(store.root) == [KEYS.one]


def test_nobody_can_write_to_its_files_by_mistake(publish):
    template = publish()
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (template.ram, template.state, template.upper)
    }
    assert modes == {RAM: 0o444, STATE: 0o444, UPPER: 0o444}


def test_the_holes_of_its_memory_cost_nothing(publish):
    template = publish(size=1 << 30)
    assert template.ram.stat().st_size == 1 << 30
    assert template.disk_bytes < 1 << 20


def test_publishing_again_takes_the_place_of_what_was_there(store, publish):
    publish()
    again = publish(description=replace(DESCRIPTION, kernel="6.2.0"))
    assert store.find(KEYS.one) == again
    assert [template.description.kernel for template in store.all()] == ["6.2.0"]
    assert names(store.root) == [KEYS.one]


def test_all_lists_the_last_used_first(store, publish):
    for index, key in enumerate((KEYS.one, KEYS.two, KEYS.three)):
        age(publish(key), 7200 * (index + 1))
    assert [template.key for template in store.all()] == [KEYS.one, KEYS.two, KEYS.three]
    store.find(KEYS.three).touch()
    assert store.all()[0].key == KEYS.three


def test_a_store_that_nobody_made_is_empty(store):
    store.root.rmdir()
    assert store.find(KEYS.one) is None
    assert store.all() == []
    assert store.collect(keep=KEYS.one) == []
    assert store.failure(KEYS.one) is None


# what is damaged


def rewrite(template, change):
    """Forge a manifest: ``change`` gets the whole document."""
    path = template.directory / "manifest"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def truncate_ram(template):
    os.truncate(template.ram, 1 << 20)


def change_a_byte(name):
    def damage(template):
        path = template.directory / name
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"X")

    return damage


def half_a_manifest(template):
    path = template.directory / "manifest"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "ram truncated": truncate_ram,
    "ram changed": change_a_byte(RAM),
    "state changed": change_a_byte(STATE),
    "upper changed": change_a_byte(UPPER),
    "ram missing": lambda template: template.ram.unlink(),
    "state missing": lambda template: template.state.unlink(),
    "manifest missing": lambda template: (template.directory / "manifest").unlink(),
    "manifest empty": lambda template: (template.directory / "manifest").write_bytes(b""),
    "manifest half written": half_a_manifest,
    "manifest of zeros": lambda template: (template.directory / "manifest").write_bytes(bytes(1000)),
    "manifest of brackets": lambda template: (template.directory / "manifest").write_text("[" * 60_000),
    "manifest a list": lambda template: (template.directory / "manifest").write_text("[]"),
    "checksum forged": lambda template: rewrite(template, lambda signed: signed.update(sha256="0" * 64)),
    "size forged": lambda template: rewrite(
        template, lambda signed: signed["template"]["files"][RAM].update(size=1)
    ),
    "key forged": lambda template: rewrite(template, lambda signed: signed["template"].update(key=KEYS.two)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_template_is_not_found_and_taken_away(store, publish, damage):
    damage(publish())
    assert store.all() == []
    assert store.find(KEYS.one) is None
    assert names(store.root) == []


def test_a_template_copied_under_another_key_is_not_that_template(store, publish):
    template = publish()
    shutil.copytree(template.directory, store.root / KEYS.two)
    assert [one.key for one in store.all()] == [KEYS.one]
    assert store.find(KEYS.two) is None
    assert names(store.root) == [KEYS.one]
    assert store.find(KEYS.one) == template


def test_verify_sees_what_was_changed_behind_the_files_back(store, publish):
    """find() compares sizes and times, which cost nothing; this reads everything."""
    template = publish()
    stat = template.ram.stat()
    change_a_byte(RAM)(template)
    os.utime(template.ram, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.find(KEYS.one) is not None
    assert store.verify(template) == [f"{template.ram} is not what was written"]


# interruptions

KILLED = """
import os, signal, sys
from pathlib import Path
from microsandbox.store.config import Config
from microsandbox.store.home import Home
from microsandbox.template import store as stores
from tests.unit.template.conftest import DESCRIPTION, write_partial

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

root, key, moment = sys.argv[1:]
store = stores.TemplateStore(Home(Path(root), Config()))
partial = write_partial(store, key)
if moment == "manifest":
    stores.write_atomically = die
elif moment == "files":
    stores.sparse_digest = die
elif moment == "discard":
    stores.TemplateStore.discard = die
elif moment == "rename":
    discard = stores.TemplateStore.discard
    stores.TemplateStore.discard = lambda *given: (discard(*given), die())
store.publish(partial, key, DESCRIPTION)
"""


@pytest.mark.parametrize("moment", ["files", "manifest", "discard", "rename"])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_builder_killed_while_it_publishes_leaves_no_template_of_its_own(store, publish, moment, replacing):
    before = publish() if replacing else None
    command = [sys.executable, "-c", KILLED, store.root.parent, KEYS.one, moment]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    survives = replacing and moment != "rename"
    assert store.find(KEYS.one) == (before if survives else None)
    assert [template.key for template in store.all()] == ([KEYS.one] if survives else [])
    assert any(name.startswith(PARTIAL_PREFIX) for name in names(store.root))
    made = publish()
    assert store.find(KEYS.one) == made


def test_what_a_killed_builder_left_goes_when_its_template_is_built_again(store):
    write_partial(store, KEYS.one)
    other = write_partial(store, KEYS.two)
    with store.lock(KEYS.one):
        store.remove_unfinished(KEYS.one)
    assert [name for name in names(store.root) if name.startswith(PARTIAL_PREFIX)] == [other.name]


def test_collecting_takes_old_leftovers_and_leaves_builds_that_may_be_going_on(store, publish):
    old, new = write_partial(store, KEYS.two), write_partial(store, KEYS.three)
    os.utime(old, (1, 1))
    publish()
    assert store.collect(keep=KEYS.one) == []
    assert names(store.root) == sorted([KEYS.one, new.name])


# collection


def test_templates_that_nobody_uses_are_collected_but_not_the_one_just_built(store, publish):
    for key in (KEYS.one, KEYS.two, KEYS.three):
        age(publish(key), UNUSED_FOR + 60)
    age(store.find(KEYS.three), UNUSED_FOR - 60)
    assert store.collect(keep=KEYS.one) == [KEYS.two]
    assert {template.key for template in store.all()} == {KEYS.one, KEYS.three}


def test_above_the_limit_the_longest_unused_go_but_not_the_one_just_built(store, publish, monkeypatch):
    for seconds, key in ((7200, KEYS.one), (10800, KEYS.two), (14400, KEYS.three)):
        age(publish(key), seconds)
    monkeypatch.setattr(stores, "MAX_BYTES", int(2.5 * store.find(KEYS.one).disk_bytes))
    assert store.collect(keep=KEYS.three) == []
    assert store.collect(keep=KEYS.one) == [KEYS.three]
    monkeypatch.setattr(stores, "MAX_BYTES", 0)
    assert store.collect(keep=KEYS.two) == [KEYS.one]
    assert [template.key for template in store.all()] == [KEYS.two]


def test_collecting_takes_what_is_damaged_and_leaves_what_is_no_template(store, publish):
    (store.root / "logs").mkdir()
    truncate_ram(publish(KEYS.two))
    publish()
    assert store.collect(keep=KEYS.one) == [KEYS.two]
    assert names(store.root) == [KEYS.one, "logs"]


def test_templates_of_an_image_go_with_it(store, publish):
    publish(KEYS.one, replace(DESCRIPTION, image="sha256:1", upper_size_mib=64))
    publish(KEYS.two, replace(DESCRIPTION, image="sha256:2", upper_size_mib=64))
    publish(KEYS.three)
    store.discard_image("sha256:1")
    assert {template.key for template in store.all()} == {KEYS.two, KEYS.three}


def test_discarding_says_whether_there_was_one(store, publish):
    publish()
    assert store.discard(KEYS.one)
    assert not store.discard(KEYS.one)
    assert not discard_template(store.root, KEYS.two)
    assert names(store.root) == []


def test_a_template_that_is_in_use_can_be_discarded(store, publish):
    template = publish()
    with template.ram.open("rb") as ram:
        store.discard(KEYS.one)
        assert ram.read(4) == b"ram "


# failures


def test_a_failed_build_is_remembered_for_a_while(store):
    store.record_failure(KEYS.one, "no space\N{HORIZONTAL ELLIPSIS}")
    assert store.failure(KEYS.one) == "no space\N{HORIZONTAL ELLIPSIS}"
    assert store.failure(KEYS.two) is None
    then = time.time() - RETRY_AFTER - 1
    [record] = store.root.iterdir()
    os.utime(record, (then, then))
    assert store.failure(KEYS.one) is None


def test_a_reason_without_end_is_cut(store):
    store.record_failure(KEYS.one, "x" * 1_000_000)
    assert len(store.failure(KEYS.one)) == 4096


def test_a_template_that_was_built_after_all_ends_the_failure(store, publish):
    store.record_failure(KEYS.one, "no space")
    publish()
    assert store.failure(KEYS.one) is None


def test_a_template_damaged_while_it_is_published_is_an_error(store, monkeypatch):
    partial = write_partial(store, KEYS.one)
    write = stores.write_atomically

    def and_damage(*given, **options):
        write(*given, **options)
        os.truncate(partial / RAM, 0)

    monkeypatch.setattr(stores, "write_atomically", and_damage)
    with pytest.raises(TemplateError, match=f"{KEYS.one} was damaged while it was written"):
        store.publish(partial, KEYS.one, DESCRIPTION)


def test_a_lock_is_of_one_key(store):
    with store.lock(KEYS.one):
        assert not store.lock(KEYS.one).is_free()
        assert store.lock(KEYS.two).is_free()
    assert store.lock(KEYS.one).is_free()
    assert partial_path(store.root / KEYS.one).name.endswith(KEYS.one)
