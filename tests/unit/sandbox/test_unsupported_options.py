"""What this release does not have: refused by name when asked for, checked first, and never in silence."""

import pytest

import microsandbox as m
from microsandbox.errors import NotSupportedYetError, UnsupportedOperationError

EXPOSED = m.NetworkPolicy(
    rules=(m.Rule.allow(destination=m.Destination.group("public")), *m.Rule.allow_dns())
)


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({"registry_auth": m.RegistryAuth.basic("u", "p")}, "registry_auth"),
        ({"volumes": {"/v": m.Volume.bind("/h")}}, "bind mounts"),
        ({"volumes": {"/v": {"bind": "/h", "stat_virtualization": "off"}}}, "bind mounts"),
        ({"volumes": {"/v": m.Volume.named("n", mode="create", size_mib=1)}}, "named volumes"),
        ({"volumes": {"/v": m.Volume.disk("d.raw", format="raw")}}, "disk image mounts"),
        ({"patches": [m.Patch.text("/x", "y", mode=0o600)]}, "patches"),
        (
            {"patches": [m.Patch.copy_dir("/a", "/b", replace=True), {"kind": "remove", "path": "/x"}]},
            "patches",
        ),
        ({"ports": {8080: 80}}, "ports"),
        ({"ports": [m.PortBinding.udp(1, 2)]}, "ports"),
        ({"network": m.Network.public_only()}, "network policy"),
        ({"network": m.Network.allow_all()}, "network policy"),
        ({"network": m.Network(policy=EXPOSED)}, "network policy"),
        ({"network": m.Network(deny_domains=["x.y"])}, "network policy"),
        ({"network": m.Network(policy="none", ports={1: 2})}, "ports"),
        ({"network": {"dns": {"nameservers": ["1.1.1.1", "dns.google:53", "[::1]:53", "::1"]}}}, "dns"),
        ({"network": {"tls": {}}}, "tls"),
        ({"network": m.Network(tls=m.TlsConfig(ca_cert="/c", block_quic=False))}, "tls"),
        ({"network": m.Network(ipv4_pool="10.0.0.0/16")}, "address pools"),
        ({"network": m.Network(max_connections=5)}, "max_connections"),
        ({"network": m.Network(trust_host_cas=True)}, "trust_host_cas"),
        ({"network": {"on_secret_violation": "block_and_terminate"}}, "secrets"),
        ({"secrets": [m.Secret.env("K", value="v", allow_hosts=["h"])]}, "secrets"),
        ({"on_secret_violation": m.ViolationAction.BLOCK}, "secrets"),
        ({"on_secret_violation": m.ViolationPolicy.passthrough(all_hosts=True)}, "secrets"),
        ({"on_secret_violation": m.ViolationPolicy.block()}, "secrets"),
    ],
)
def test_asking_for_it_is_an_error_that_names_it(parse, options, feature):
    with pytest.raises(NotSupportedYetError) as caught:
        parse(**options)
    assert caught.value.feature == feature
    assert str(caught.value) == f"{feature}: not supported yet by this release"


@pytest.mark.parametrize(
    "options",
    [
        {"patches": []},
        {"ports": {}},
        {"ports": []},
        {"network": {}},
        {"network": m.Network()},
        {"network": m.Network.none()},
        {"network": {"policy": "none"}},
        {"network": {"dns": {}, "ports": [], "deny_domains": [], "trust_host_cas": False}},
        {"network": {"custom_policy": {"default_egress": "deny", "default_ingress": "deny", "rules": []}}},
        {"secrets": []},
        {"on_secret_violation": "block-and-log"},
        {"on_secret_violation": m.ViolationPolicy.block_and_log()},
        {"security": "default"},
    ],
)
def test_what_is_empty_or_the_default_asks_for_nothing(parse, options):
    assert parse(**options) == parse()


def test_libkrunfw_is_said_to_be_something_else_here(parse):
    with pytest.raises(UnsupportedOperationError, match="MSB_KERNEL chooses another"):
        parse(libkrunfw_path="/lib/libkrunfw.so")


def rule(**values):
    return {"network": {"custom_policy": {"rules": [{"action": "allow", **values}]}}}


def binding(**values):
    return {"ports": [{"host_port": 1, "guest_port": 2, **values}]}


def secret(**values):
    return {"secrets": [{"env_var": "K", "value": "v", "allow_hosts": ["h"], **values}]}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"network": {"policy": "open"}}, ValueError, "unknown network policy preset: open"),
        ({"network": {"policy": {}}}, TypeError, "'dict' object cannot be converted to 'PyString'"),
        ({"network": {"poliyc": "none"}}, TypeError, 'unknown network key: poliyc (did you mean "policy"?)'),
        (
            {"network": {"custom_policy": {"default_egress": "x"}}},
            ValueError,
            "unknown default_egress: x",
        ),
        (
            {"network": {"custom_policy": {"default_ingress": "x"}}},
            ValueError,
            "unknown default_ingress: x",
        ),
        (
            {"network": {"custom_policy": {"rules": ()}}},
            TypeError,
            "'tuple' object cannot be converted to 'PyList'",
        ),
        ({"network": {"custom_policy": {"rules": [{}]}}}, ValueError, "action is required"),
        (rule(action="x"), ValueError, "unknown rule action: x"),
        (rule(direction="x"), ValueError, "unknown direction: x"),
        (rule(protocol="x"), ValueError, "unknown protocol: x"),
        (rule(port=443), TypeError, "'int' object cannot be converted to 'PyString'"),
        (
            rule(port="http"),
            ValueError,
            "invalid port: http (expected a number up to 65535, or a range such as 8000-9000)",
        ),
        (rule(port="9-8"), ValueError, "invalid port range 9..8; lo must be <= hi"),
        (rule(destination_kind="x"), ValueError, "unknown destination kind: x"),
        (
            rule(destination_kind="domain-suffix"),
            ValueError,
            "destination is required for destination kind `domain-suffix`",
        ),
        (
            rule(destination_kind="group", destination="x"),
            ValueError,
            "unknown destination group: x",
        ),
        (rule(destination="domain=."), ValueError, 'invalid domain ".": domain name is empty'),
        (
            rule(destination="suffix=a b"),
            ValueError,
            "invalid domain suffix \"a b\": invalid domain name: bad label 'a b'",
        ),
        ({"network": {"deny_domains": ["."]}}, ValueError, 'deny_domains["."]: domain name is empty'),
        (
            {"network": {"deny_domain_suffixes": [""]}},
            ValueError,
            'deny_domain_suffixes[""]: domain name is empty',
        ),
        (
            {"network": {"dns": {"nameservers": ["a:b:c"]}}},
            ValueError,
            'invalid nameserver "a:b:c"; expected IP, IP:PORT, HOST, or HOST:PORT',
        ),
        (
            {"network": {"dns": {"nameservers": ["1.1.1.1:70000"]}}},
            ValueError,
            'invalid nameserver "1.1.1.1:70000"; expected IP, IP:PORT, HOST, or HOST:PORT',
        ),
        ({"network": {"max_connections": -1}}, OverflowError, None),
        ({"network": {"trust_host_cas": 1}}, TypeError, "'int' object cannot be converted to 'PyBool'"),
        (
            {"ports": 1},
            TypeError,
            "ports must be a mapping of host_port to guest_port or a sequence of PortBinding values",
        ),
        ({"ports": {1: 65536}}, OverflowError, "out of range integral type conversion attempted"),
        ({"ports": [{"guest_port": 1}]}, ValueError, "host_port is required"),
        ({"ports": [{"host_port": 1}]}, ValueError, "guest_port is required"),
        (binding(bind="here"), ValueError, "invalid bind address: here"),
        (binding(protocol="sctp"), ValueError, "invalid port protocol: sctp"),
        ({"secrets": ()}, TypeError, "'tuple' object cannot be converted to 'PyList'"),
        ({"secrets": [{"value": "v"}]}, ValueError, "env_var is required"),
        ({"secrets": [{"env_var": "K"}]}, ValueError, "value is required"),
        (
            secret(allow_hosts=[]),
            ValueError,
            "SecretEntry requires at least one allowed host or allowed host pattern",
        ),
        (secret(injection=None), TypeError, "expected dict or object with _to_dict(), got NoneType"),
        (secret(on_violation="x"), ValueError, "unknown violation action: x"),
        ({"on_secret_violation": "x"}, ValueError, "unknown violation action: x"),
        (
            {"on_secret_violation": {}},
            ValueError,
            "expected violation action string or {'passthrough': {...}}",
        ),
        (
            {"on_secret_violation": {"passthrough": {"fallback": "passthrough"}}},
            ValueError,
            "passthrough fallback must be a blocking action",
        ),
    ],
)
def test_mistakes_are_reported_as_what_they_are(parse, options, error, text):
    with pytest.raises(error) as caught:
        parse(**options)
    assert text is None or str(caught.value) == text


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        (rule(destination_kind="ip", destination="1.2.3"), 'invalid IP address "1.2.3": '),
        (
            rule(destination="1.2.3.4/33"),
            'invalid CIDR "1.2.3.4/33": ',
        ),
        (
            rule(destination="1.2.3.4/3/3"),
            "invalid CIDR \"1.2.3.4/3/3\": invalid cidr format: CIDR must contain a single '/': 1.2.3.4/3/3",
        ),
        ({"network": {"ipv4_pool": "::/64"}}, 'invalid ipv4_pool "::/64": '),
        ({"network": {"ipv6_pool": "x"}}, 'invalid ipv6_pool "x": '),
    ],
)
def test_addresses_that_are_none_say_why(parse, options, beginning):
    with pytest.raises(ValueError, match="invalid") as caught:
        parse(**options)
    assert str(caught.value).startswith(beginning)
