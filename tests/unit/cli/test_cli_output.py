"""Tables, details, times and styles."""

import io

import pytest

from microsandbox.cli import output


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """Call it in the test to write to a terminal: pytest puts its own streams in place before that."""

    def show():
        stream = Terminal()
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return show


def test_a_table_is_as_wide_as_its_cells():
    assert output.table(("NAME", "S"), [("a", "run"), ("longer", "x")]) == (
        "NAME      S\na         run\nlonger    x\n"
    )
    assert output.table(("NAME",), []) == ""


def test_styles_do_not_count_as_width(on_terminal):
    on_terminal()
    lines = output.table(("N", "STATUS"), [("a", output.status("Running")), ("bcd", "x")]).splitlines()
    assert lines == [
        "\x1b[1;36mN\x1b[0m      \x1b[1;36mSTATUS\x1b[0m",
        "a      \x1b[32;1mrunning\x1b[0m",
        "bcd    x",
    ]


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", ""), ("TERM", "dumb")])
def test_no_styles_where_they_are_not_wanted(on_terminal, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    terminal = on_terminal()
    assert output.status("Crashed") == "crashed"
    output.error("x")
    assert terminal.getvalue() == "error: x\n"


def test_nobody_else_moves_the_cursor(on_terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = on_terminal()
    output.error("bad \x1b[2J\x07 text\x9b", ["more\x1b]0;title\x07"])
    assert "\x1b" not in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()
    assert "\x9b" not in terminal.getvalue()


def test_an_error_of_several_lines(capsys):
    output.error("first\nsecond", ["third"])
    assert capsys.readouterr().err == "error: first\n  → second\n  → third\n"


@pytest.mark.parametrize(
    ("seconds", "note", "line"),
    [
        (0.5, "", "   ✓ Started      box\n"),
        (0.6, "", "   ✓ Started      box (0.6s)\n"),
        (125, "", "   ✓ Started      box (2m5s)\n"),
        (9, "(already cached)", "   ✓ Started      box (already cached)\n"),
    ],
)
def test_success(capsys, seconds, note, line):
    output.success("Started", "box", seconds, note)
    assert capsys.readouterr().err == line


def test_details():
    assert output.detail("Name", "box") == "Name:           box"
    assert output.indented("CPUs", "2") == "  CPUs:         2"


def test_times(monkeypatch):
    assert output.rfc3339(1700000000.5) == "2023-11-14T22:13:20.500Z"
    assert output.rfc3339(None) is None
    assert output.local_time(None) == "-"


def test_shortening():
    assert (output.shorten("abcdef", 6), output.shorten("abcdefg", 6)) == ("abcdef", "abc...")
