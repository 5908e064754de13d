"""An init as a value: what cannot be one is refused in the words of the documentation."""

import pytest

from microsandbox.errors import InvalidConfigError
from microsandbox.sandbox.handoff import Init, boot_init, validate_init


@pytest.mark.parametrize("init", [None, Init("auto"), Init("/sbin/init", ("", "-x"), (("K", ""),))])
def test_what_can_be_one(init):
    validate_init(init)


@pytest.mark.parametrize(
    ("init", "detail"),
    [
        (Init("sbin/init"), 'init cmd must be an absolute path or `auto`, got: "sbin/init"'),
        (Init(""), 'init cmd must be an absolute path or `auto`, got: ""'),
        (Init("/a\0"), 'init cmd path must not contain a NUL byte: "/a\\0"'),
        (Init("/i", ("a", "\x1f")), "init arg #1 contains the reserved separator byte (0x1F)"),
        (Init("/i", ("\0",)), "init arg #0 must not contain a NUL byte"),
        (Init("/i", (), (("", "v"),)), "init env key must not be empty"),
        (Init("/i", (), (("a=b", "v"),)), "init env key \"a=b\" must not contain '='"),
        (Init("/i", (), (("a\0", "v"),)), 'init env key "a\\0" must not contain 0x1F or NUL'),
        (Init("/i", (), (("K", "\x1f"),)), 'init env value for "K" must not contain 0x1F or NUL'),
        (Init("/i", ("",) * 4096), "init has too many words: 4096 arguments (max 4095) and 0 environment"),
        (Init("/i", ("x" * (2 << 20),)), "init's words are larger than 2 MiB together"),
    ],
)
def test_what_cannot(init, detail):
    with pytest.raises(InvalidConfigError) as caught:
        validate_init(init)
    assert detail in str(caught.value)


def test_its_environment_goes_over_the_sandboxs():
    told = boot_init(Init("/i", ("a",), (("B", "3"),)), (("A", "1"), ("B", "2")))
    assert told == {"cmd": "/i", "args": ["a"], "env": ["A=1", "B=3"]}
    assert boot_init(None, ()) is None
