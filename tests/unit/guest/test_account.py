"""Users and groups as the agent reads them from an image: its own C, run on the host."""

import subprocess
import sys
from pathlib import Path

import pytest

GUEST = Path(__file__).resolve().parents[3] / "guest"
DRIVER = r"""
#include "account.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    static struct account account;
    char error[512];
    if (argc != 4)
        return 2;
    struct text passwd = {argv[2], strlen(argv[2])}, group = {argv[3], strlen(argv[3])};
    if (!account_parse(argv[1], passwd, group, &account, error, sizeof error)) {
        puts(error);
        return 1;
    }
    printf("%u:%u %s", account.uid, account.gid, account.home);
    for (size_t i = 0; i < account.group_count; i++)
        printf(" %u", account.groups[i]);
    puts("");
    return 0;
}
"""
PASSWD = """# comment
broken
root:x:0:0:root:/root:/bin/sh
app:x:1000:1000:An App:/home/app:/bin/sh
app:x:9999:9999:later:/nowhere:/bin/sh
homeless:x:1001:1001:::
bad:x:-1:0::/:
4294967296:x:5:5::/five:
"""
GROUP = (
    "root:x:0:\napp:x:1000:\nextra:x:2000:app,other\nmore:x:2001:root, app\nappx:x:2002:appx\nbad:x::app\n"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    pytest.importorskip("ziglang")
    directory = tmp_path_factory.mktemp("account")
    (directory / "driver.c").write_text(DRIVER)
    program = directory / "driver"
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O1",
        "-fsanitize=undefined",
    ]
    subprocess.run(
        [*command, f"-I{GUEST}", "-o", program, directory / "driver.c", GUEST / "account.c"], check=True
    )
    return program


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("root", "0:0 /root 0 2001"),
        ("0", "0:0 /root 0 2001"),
        (" app\t", "1000:1000 /home/app 1000 2000 2001"),
        ("1000", "1000:1000 /home/app 1000 2000 2001"),
        ("app:extra", "1000:2000 /home/app 2000 2001"),
        ("app:77", "1000:77 /home/app 77 2000 2001"),
        ("77", "77:0 /"),
        ("77:88", "77:88 /"),
        ("77:extra", "77:2000 /"),
        ("homeless", "1001:1001 / 1001"),
        ("4294967296", "5:5 /five 5"),
    ],
)
def test_a_specification_means(driver, spec, expected):
    done = subprocess.run([driver, spec, PASSWD, GROUP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", "user spec has empty user"),
        ("  ", "user spec has empty user"),
        (":app", "user spec has empty user"),
        ("app:", "user spec has empty group"),
        ("ghost", "guest user not found: ghost"),
        ("bad", "guest user not found: bad"),
        ("app:ghost", "guest group not found: ghost"),
        ("app:bad", "guest group not found: bad"),
        ("ap", "guest user not found: ap"),
        ("-1", "guest user not found: -1"),
    ],
)
def test_what_does_not_exist_is_refused_in_the_words_of_the_protocol(driver, spec, expected):
    done = subprocess.run([driver, spec, PASSWD, GROUP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, expected + "\n"), done.stderr
