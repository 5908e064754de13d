"""Environment variables: read in one place, documented in one table, a wrong value is named."""

import re
from pathlib import Path

import pytest

from microsandbox import environment
from microsandbox.errors import InvalidConfigError

PROJECT = Path(__file__).parents[2]
NAMES = {value for name, value in vars(environment).items() if name.isupper() and not name.startswith("_")}


@pytest.mark.parametrize(
    ("name", "choices"), [("MSB_ACCEL", "auto, kvm or tcg"), ("MSB_TEMPLATES", "auto or off")]
)
def test_a_choice_that_is_none_is_named(monkeypatch, name, choices):
    monkeypatch.setenv(name, "loud")
    with pytest.raises(InvalidConfigError, match=f"^invalid config: {name} must be {choices}, got 'loud'$"):
        environment.choice(name)
    monkeypatch.setenv(name, "")
    assert environment.choice(name) == "auto"
    monkeypatch.delenv(name)
    assert environment.choice(name) == "auto"


def test_the_documentation_has_every_variable_and_no_other():
    section = (PROJECT / "docs" / "configuration.md").read_text().partition("## Environment variables")[2]
    documented = re.findall(r"^\| `([A-Z_]+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert sorted(documented) == sorted(NAMES)


def test_every_variable_of_ours_is_among_them():
    sources = (PROJECT / "src" / "microsandbox").rglob("*.py")
    used = {name for file in sources for name in re.findall(r"\bMSB_[A-Z_]+\b", file.read_text())}
    assert used == {name for name in NAMES if name.startswith("MSB_")}
