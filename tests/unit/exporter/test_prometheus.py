"""The page that Prometheus scrapes, and the server it is on, at its bounds."""

import asyncio

import msgspec
import pytest

from microsandbox.exporter import endpoint
from microsandbox.exporter.collection import Collection, Reading
from microsandbox.exporter.endpoint import Endpoint, Unavailable
from microsandbox.exporter.prometheus import render

READING = Reading("box", 3, 7, 99, (), 1.5, 14 << 20, 256 << 20, 512, 6 << 20, 8, 0, 59.5)


def lines(**changes):
    text = render(Collection(0, (msgspec.structs.replace(READING, **changes),)))
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_page():
    assert render(Collection(0, (READING,))).splitlines()[:3] == [
        "# HELP microsandbox_cpu_utilization_ratio CPU time used, in processors.",
        "# TYPE microsandbox_cpu_utilization_ratio gauge",
        'microsandbox_cpu_utilization_ratio{sandbox_name="box",sandbox_id="3"} 1.5',
    ]
    assert [line.replace('{sandbox_name="box",sandbox_id="3"}', "") for line in lines()] == [
        "microsandbox_cpu_utilization_ratio 1.5",
        "microsandbox_memory_usage_bytes 14680064",
        "microsandbox_memory_limit_bytes 268435456",
        "microsandbox_disk_bytes_read 512",
        "microsandbox_disk_bytes_written 6291456",
        "microsandbox_network_bytes_received 8",
        "microsandbox_network_bytes_sent 0",
        "microsandbox_uptime_seconds 59.5",
    ]


def test_what_is_unknown_has_no_value():
    assert not any("cpu" in line or "memory_usage" in line for line in lines(cpu=None, memory=None))


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ((("team", "core"),), 'team="core",'),
        ((("a.b-c", "1"), ("a_b_c", "2")), 'a_b_c="1;2",'),
        ((("9", "x"), ("", "y"), ("__name__", "z")), 'key_9="x",key_="y",key__name__="z",'),
        ((("a", 'quote " slash \\ line\nend'),), 'a="quote \\" slash \\\\ line\\nend",'),
        ((("sandbox_name", "other"),), None),
        ((("é", "x"),), 'key_="x",'),
    ],
)
def test_labels_become_valid_and_hide_nothing(labels, text):
    own = 'sandbox_name="box",sandbox_id="3"'
    assert lines(labels=labels)[0] == f"microsandbox_cpu_utilization_ratio{{{text or ''}{own}}} 1.5"


async def ask(served, request):
    reader, writer = await asyncio.open_connection(*served.url.split("/")[2].split(":"))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def ended(reader, within=5):
    """Whether the other side hangs up without a word, by a reset or not."""
    try:
        return await asyncio.wait_for(reader.read(), within) == b""
    except ConnectionError:
        return True


@pytest.fixture
async def served():
    async with Endpoint(("127.0.0.1", 0), lambda: "the page\n", "text/x") as served:
        yield served


PAGE = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 9\r\nConnection: close\r\n\r\n"
)  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", f"{PAGE}the page\n"),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", f"{PAGE}the page\n"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", PAGE),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed\r\n"),
        (b"\x16\x03\x01\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
        (b"GET /metrics\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
        (
            b"GET /metrics HTTP/1.1\r\n" + b"a" * 32000 + b"\r\n\r\n",
            "HTTP/1.1 431 Request Header Fields Too Large",
        ),
    ],
)
async def test_requests_and_their_answers(served, request_, answer):
    found = await ask(served, request_)
    assert found == answer if "200" in answer else found.startswith(answer)


async def test_a_page_that_is_not_to_be_had_is_503_with_the_reason():
    def page():
        raise Unavailable("the registry is damaged")

    async with Endpoint(("127.0.0.1", 0), page, "text/x") as served:
        answer = await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith("HTTP/1.1 503 ") and answer.endswith("\r\n\r\nthe registry is damaged\n")


async def test_connections_that_say_nothing_end_and_are_bounded(served, monkeypatch):
    monkeypatch.setattr(endpoint, "_TIME", 1.5)
    address = served.url.split("/")[2].split(":")
    silent = [await asyncio.open_connection(*address) for _ in range(endpoint._MOST_CONNECTIONS)]
    one_more, writer = await asyncio.open_connection(*address)
    assert await ended(one_more, within=1.2)
    writer.close()
    for reader, writer in silent:
        assert await ended(reader)
        writer.close()
    assert (await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith("the page\n")


async def test_leaving_ends_connections_and_frees_the_address():
    async with Endpoint(("127.0.0.1", 0), str, "text/x") as served:
        reader, writer = await asyncio.open_connection(*served.url.split("/")[2].split(":"))
        while not served._connections:
            await asyncio.sleep(0)
    assert await ended(reader)
    writer.close()
    assert served._connections == set()
