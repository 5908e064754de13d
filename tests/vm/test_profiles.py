"""Security profiles, on real machines: what commands of a restricted sandbox have no more."""

import pytest

from microsandbox import Sandbox, Volume

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

SYS_ADMIN = 1 << 21
ALL = (1 << 41) - 1


async def privileges(sandbox, **options):
    """The sets of a command, and whether it may gain new ones."""
    output = await sandbox.exec("cat", ["/proc/self/status"], **options)
    lines = dict(line.split(":\t", 1) for line in output.stdout_text.splitlines() if ":\t" in line)
    sets = {name: int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return sets, lines["NoNewPrivs"]


async def test_default_takes_nothing_away(busybox, name):
    async with await Sandbox.create(name, image=busybox, security="default") as sandbox:
        sets, no_new = await privileges(sandbox)
        assert (sets["CapEff"], sets["CapPrm"], sets["CapBnd"], no_new) == (ALL, ALL, ALL, "0")
        done = await sandbox.shell("mkdir /m && mount -t tmpfs none /m && umount /m")
        assert done.success, done.stderr_text


async def test_restricted_takes_new_privileges_and_mounting_away_and_nothing_else(busybox, name):
    volumes = {"/data": Volume.tmpfs(size_mib=8)}
    async with await Sandbox.create(name, image=busybox, security="restricted", volumes=volumes) as sandbox:
        for options in ({}, {"tty": True}):
            sets, no_new = await privileges(sandbox, **options)
            left = ALL & ~SYS_ADMIN
            assert (sets["CapEff"], sets["CapPrm"], sets["CapBnd"]) == (left, left, left)
            assert (sets["CapInh"], sets["CapAmb"], no_new) == (0, 0, "1")
        sets, no_new = await privileges(sandbox, user="demo")
        assert (sets["CapEff"], sets["CapBnd"] & SYS_ADMIN, no_new) == (0, 0, "1")

        refused = await sandbox.shell("mkdir /m && mount -t tmpfs none /m")
        assert not refused.success
        assert "permission denied" in refused.stderr_text or "not permitted" in refused.stderr_text
        assert not (await sandbox.shell("mount -o remount,suid,dev /data")).success
        kept = await sandbox.shell("ip link set lo mtu 1400 && touch /f && chown 5:5 /f && stat -c %u /f")
        assert kept.stdout_text == "5\n", kept.stderr_text

        mounts = (await sandbox.shell("cat /proc/mounts")).stdout_text.splitlines()
        options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
        for path in ("/data", "/tmp"):
            assert {"nosuid", "nodev"} <= set(options[path]), path


async def test_a_set_user_id_program_gains_nothing(busybox, name):
    """busybox's su says so when it has not become root."""
    for profile, gains in (("default", True), ("restricted", False)):
        async with await Sandbox.create(f"{name}-{profile}", image=busybox, security=profile) as sandbox:
            assert (await sandbox.shell("cp /bin/busybox /busybox-id && chmod 4755 /busybox-id")).success
            output = await sandbox.exec("/busybox-id", ["su", "-c", "true"], user="demo")
            assert ("must be suid" not in output.stderr_text) is gains, output.stderr_text


async def test_the_profile_is_kept_over_restarts_and_the_init_is_not_restricted(busybox, name):
    sandbox = await Sandbox.create(name, image=busybox, security="restricted", init="/sbin/init")
    await sandbox.stop()
    again = await Sandbox.start(name)
    sets, no_new = await privileges(again)
    assert (sets["CapEff"] & SYS_ADMIN, no_new) == (0, "1")
    init = (await again.shell("grep -E 'CapEff|NoNewPrivs' /proc/1/status")).stdout_text.split()
    assert (int(init[1], 16), init[3]) == (ALL, "0")
    await again.kill()
    await Sandbox.remove(name)
