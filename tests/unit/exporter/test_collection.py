"""What one collection holds, from a real registry and catalogue."""

import logging
import subprocess

import pytest

from microsandbox.exporter.collection import Collector
from microsandbox.exporter.labels import Labels
from microsandbox.metrics.registry import RegistryError
from microsandbox.store.processes import ProcessIdentity
from tests.measured import Measured


def collector(context, *, max_age=30.0, excluded=(), labels=True):
    found = Labels(context.home.database, frozenset(excluded)) if labels else None
    return Collector(context.home.metrics_registry, max_age, found)


def names(context, **options):
    return [reading.name for reading in collector(context, **options).collect().readings]


def test_a_home_where_nothing_ever_ran_has_an_empty_collection(context):
    assert names(context) == []
    assert not context.home.database.exists(), "who measures makes no catalogue"


def test_a_reading(context):
    box = Measured(context, labels={"team": "core", "app": "web", "secret": "x"}).sample()
    [reading] = collector(context, excluded=["secret"]).collect().readings
    assert (reading.name, reading.sandbox_id, reading.run_id) == ("box", box.row.id, box.row.run_id)
    assert reading.labels == (("app", "web"), ("team", "core"))
    assert (reading.cpu, reading.memory, reading.memory_limit) == (1.5, 14 << 20, 256 << 20)
    assert (reading.disk_read, reading.disk_write, reading.net_rx, reading.net_tx) == (512, 6 << 20, 8, 0)
    assert reading.uptime == 125.0


def test_only_sandboxes_that_run_and_have_been_sampled(context):
    Measured(context, "zoe").sample(), Measured(context, "adam").sample()
    Measured(context, "unsampled")
    Measured(context, "stopped").sample().retire()
    assert names(context) == ["adam", "zoe"]


def test_old_samples_are_left_out_unless_any_age_will_do(context):
    Measured(context).sample(age=31)
    assert names(context) == [] and names(context, max_age=32) == ["box"] and names(context, max_age=0)


def test_a_sandbox_whose_supervisor_was_killed_is_left_out(context):
    with subprocess.Popen(["sleep", "60"]) as child:
        Measured(context, process=ProcessIdentity.of(child.pid)).sample()
        assert names(context) == ["box"]
        child.kill()
    assert names(context, max_age=0) == []


def test_labels_are_asked_for_once_a_run(context):
    Measured(context, labels={"a": "1"}).sample()
    measuring = collector(context)
    first = measuring.collect().readings[0].labels
    context.home.database.rename(context.home.database.with_suffix(".away"))
    assert measuring.collect().readings[0].labels == first == (("a", "1"),)


def test_without_a_catalogue_there_are_values_one_warning_and_labels_once_it_is_back(context, caplog):
    caplog.set_level(logging.WARNING)
    Measured(context, labels={"a": "1"}).sample()
    away = context.home.database.with_suffix(".away")
    context.home.database.rename(away)
    measuring = collector(context)
    for _ in range(3):
        assert measuring.collect().readings[0].labels == ()
    assert [record.getMessage()[:24] for record in caplog.records] == ["sandboxes have no labels"]
    assert not context.home.database.exists()
    away.rename(context.home.database)
    assert measuring.collect().readings[0].labels == (("a", "1"),)


def test_without_labels_the_catalogue_is_left_alone(context):
    Measured(context, labels={"a": "1"}).sample()
    context.home.database.unlink()
    assert collector(context, labels=False).collect().readings[0].labels == ()


def test_a_damaged_registry_is_an_error_and_no_empty_collection(context):
    Measured(context).sample()
    context.home.metrics_registry.write_bytes(b"x" * 600)
    with pytest.raises(RegistryError, match="invalid registry magic"):
        collector(context).collect()
