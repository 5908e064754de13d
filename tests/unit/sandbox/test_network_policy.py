"""Network policies as values: presets, short destinations, ports that are never misunderstood as "all"."""

import pytest

import microsandbox as m
from microsandbox.network.names import domain_name, parse_destination
from microsandbox.network.policy import Policy, PolicyRule, parse_policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "any"),
        ("*", "any"),
        ("domain=Public", {"domain": "public"}),
        ("suffix=x.Y.", {"domain_suffix": "x.y"}),
        ("link-local", {"group": "link_local"}),
        ("link_local", {"group": "link_local"}),
        (".x.y", {"domain_suffix": "x.y"}),
        ("*.x.y", {"domain_suffix": "x.y"}),
        ("10.1.2.3/8", {"cidr": "10.0.0.0/8"}),
        ("1.1.1.1", {"cidr": "1.1.1.1/32"}),
        ("::1", {"cidr": "::1/128"}),
        ("Example.COM", {"domain": "example.com"}),
    ],
)
def test_short_destinations(text, expected):
    assert parse_destination({"destination": text}) == expected


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        (m.Destination.any(), "any"),
        (m.Destination.ip("::2"), {"cidr": "::2/128"}),
        (m.Destination.cidr("10.0.0.1/24"), {"cidr": "10.0.0.0/24"}),
        (m.Destination.domain("a.b"), {"domain": "a.b"}),
        (m.Destination.domain_suffix(".a.b"), {"domain_suffix": "a.b"}),
        (m.Destination.group(m.DestGroup.METADATA), {"group": "metadata"}),
    ],
)
def test_typed_destinations(destination, expected):
    assert parse_destination(destination._to_dict()) == expected


@pytest.mark.parametrize(
    "name", ["host:443", "user@host", "https://host", "host/path", "h?x", "a b", "a..b", "-a.b", "x" * 64]
)
def test_what_is_no_domain_name_is_refused(name):
    with pytest.raises(ValueError, match="invalid domain name"):
        domain_name(name)


def test_names_outside_ascii_become_what_is_asked_of_name_servers():
    assert domain_name("Bücher.example") == "xn--bcher-kva.example"


def test_presets():
    assert parse_policy({"policy": "none"}) == Policy("deny", "deny")
    assert parse_policy({"policy": "allow-all"}) == Policy("allow", "allow")
    public = parse_policy({"policy": "public_only"})
    assert public == parse_policy({"policy": "public-only"})
    assert [rule.destination for rule in public.rules] == [{"group": "host"}, {"group": "public"}]
    assert parse_policy({}) is None


def test_a_policy_object_becomes_the_same_rules():
    policy = m.NetworkPolicy(
        default_ingress=m.Action.DENY,
        rules=(
            *m.Rule.allow_dns(),
            m.Rule.deny(direction=m.Direction.ANY, port="8000-9000", destination="10.0.0.0/8"),
        ),
    )
    parsed = parse_policy(m.Network(policy=policy)._to_dict())
    host = {"group": "host"}
    assert parsed == Policy(
        "deny",
        "deny",
        (
            PolicyRule("allow", "egress", host, ("udp",), (range(53, 54),)),
            PolicyRule("allow", "egress", host, ("tcp",), (range(53, 54),)),
            PolicyRule("deny", "any", {"cidr": "10.0.0.0/8"}, (), (range(8000, 9001),)),
        ),
    )


def test_denied_names_come_first_and_domains_before_suffixes():
    parsed = parse_policy(
        {"policy": "public_only", "deny_domain_suffixes": ["s"], "deny_domains": ["b", "a"]}
    )
    assert [rule.destination for rule in parsed.rules[:3]] == [
        {"domain": "b"},
        {"domain": "a"},
        {"domain_suffix": "s"},
    ]
    assert (parsed.default_egress, len(parsed.rules)) == ("deny", 5)
