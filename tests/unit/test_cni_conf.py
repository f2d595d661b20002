"""The network configuration: keys, versions, faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samewire.cni.conf import (
    NetConf,
    RuntimeDns,
    as_version,
    decode_attachment,
    decode_conf,
    decode_previous,
    decode_valid_attachments,
    requested_ips,
)
from samewire.cni.environment import CniArgs
from samewire.cni.errors import CniCode, CniError
from samewire.cni.policies import HostPort
from samewire.cni.result import SUPPORTED_VERSIONS, Dns, IpConfig
from samewire.hcn.policies import QOS, OutBoundNAT, SDNRoute

BASE: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "samewire-cni"}


def conf(**keys: Any) -> NetConf:
    return decode_conf(json.dumps({**BASE, **keys}).encode())


def code(data: bytes) -> tuple[int, str]:
    with pytest.raises(CniError) as caught:
        decode_conf(data)
    return caught.value.code, str(caught.value)


def fault(**keys: Any) -> str:
    with pytest.raises(CniError) as caught:
        decode_attachment(conf(**keys), CniArgs())
    assert caught.value.code == CniCode.INVALID_CONFIG
    return caught.value.message


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_versions(version: str) -> None:
    assert conf(cniVersion=version).cni_version == version


def test_no_version_is_the_first() -> None:
    assert decode_conf(b'{"name": "net"}').cni_version == "0.1.0"


@pytest.mark.parametrize("version", ["0.5.0", "1.2.0", "2.0.0", "1.1", "v1.1.0"])
def test_unknown_versions(version: str) -> None:
    found, text = code(json.dumps({**BASE, "cniVersion": version}).encode())
    assert found == CniCode.INCOMPATIBLE_VERSION
    assert text.startswith(f"incompatible CNI versions: config is '{version}', plugin supports 0.1.0, ")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff{}", b'{"name": "\xff"}', b"[" * 100_000, b"{} {}"],
)
def test_undecodable(data: bytes) -> None:
    assert code(data)[0] == CniCode.DECODING_FAILURE


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": ""}, "name: is required"),
        ({"name": None}, "name: is required"),
        ({"name": 5}, "name: expected a string, got the number 5"),
        ({"name": "a/b"}, "name: 'a/b': expected letters"),
        ({"name": "../x"}, "name: '../x': expected letters"),
        ({"ipam": []}, "ipam: expected an object, got a list"),
        ({"ipam": {"subnet": "10.1.0.0/24"}}, "ipam.type: is required"),
        ({"ipam": {"type": "../evil"}}, "ipam.type: '../evil' is not the name of a plugin"),
    ],
)
def test_faults_of_every_verb(keys: dict[str, Any], message: str) -> None:
    found, text = code(json.dumps({**BASE, **keys}).encode())
    assert found == CniCode.INVALID_CONFIG
    assert text.startswith(message)


def test_a_plain_attachment() -> None:
    found = decode_attachment(conf(), CniArgs())
    assert (found.policies, found.qos, found.host_ports, found.ips) == ((), None, (), ())
    assert (found.mac, found.mtu, found.masquerade, found.default_gateway) == ("", 0, False, None)
    assert found.network is None
    assert not found.dns


def test_runtime_config() -> None:
    runtime = {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "192.168.1.9"},
            {"hostPort": 54, "containerPort": 53},
            {"hostPort": 55, "containerPort": 53, "protocol": "sctp"},
        ],
        "bandwidth": {
            "ingressRate": 8000,
            "ingressBurst": 16000,
            "egressRate": 80_000_000,
            "egressBurst": 4294967295,
        },
        "dns": {"servers": ["10.96.0.10"], "searches": ["a.b", "b"], "options": ["ndots:5"]},
        "ips": ["10.1.0.9/24", "FD00:1::0009"],
        "mac": "0E-2A-00-00-00-09",
        "aliases": {"net": ["web"]},
    }
    found = decode_attachment(conf(runtimeConfig=runtime), CniArgs())
    assert found.host_ports == (
        HostPort(8080, 80, 6, ""),
        HostPort(53, 53, 17, "192.168.1.9"),
        HostPort(54, 53, 6, ""),
        HostPort(55, 53, 132, ""),
    )
    assert found.qos == QOS(
        maximum_incoming_bandwidth_in_bytes=1000,
        maximum_incoming_burst_in_bytes=2000,
        maximum_outgoing_bandwidth_in_bytes=10_000_000,
        maximum_outgoing_burst_in_bytes=0,
    )
    assert found.runtime_dns == RuntimeDns(("10.96.0.10",), ("a.b", "b"), ("ndots:5",))
    assert found.ips == ("10.1.0.9/24", "fd00:1::9")
    assert found.mac == "0e:2a:00:00:00:09"


def test_caps_of_one_direction_and_none() -> None:
    one = {"bandwidth": {"egressRate": 8000, "egressBurst": 8000}}
    found = decode_attachment(conf(runtimeConfig=one), CniArgs()).qos
    assert found == QOS(maximum_outgoing_bandwidth_in_bytes=1000, maximum_outgoing_burst_in_bytes=1000)
    none = {"bandwidth": {"ingressRate": 0, "ingressBurst": 0}}
    assert decode_attachment(conf(runtimeConfig=none), CniArgs()).qos is None


def test_addresses_and_mac_by_precedence() -> None:
    value = conf(
        args={"cni": {"ips": ["10.1.0.8"], "mac": "0e:00:00:00:00:08"}}, runtimeConfig={"ips": ["10.1.0.9"]}
    )
    args = CniArgs(ip="10.1.0.7", mac="0e:00:00:00:00:07")
    assert requested_ips(value, args) == ("10.1.0.7", "10.1.0.8", "10.1.0.9")
    assert decode_attachment(value, args).mac == "0e:00:00:00:00:08"
    assert decode_attachment(conf(), args).mac == "0e:00:00:00:00:07"


def test_the_dns_capability_replaces_list_by_list() -> None:
    base = Dns(("1.1.1.1",), "example.org", ("a", "b"), ("ndots:1",))
    assert RuntimeDns().over(base) == base
    assert RuntimeDns(searches=("c",)).over(base) == Dns(("1.1.1.1",), "example.org", ("c",), ("ndots:1",))


def test_policies_as_windows_plugins_take_them() -> None:
    policies = [
        {
            "name": "EndpointPolicy",
            "value": {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/8"]}},
        },
        {
            "Name": "endpointpolicy",
            "Value": {"type": "SDNROUTE", "settings": {"DestinationPrefix": "10.96.0.0/12"}},
        },
        {"name": "NetworkPolicy", "value": {"anything": "else"}},
    ]
    found = decode_attachment(conf(Policies=policies), CniArgs()).policies
    assert found == (OutBoundNAT(exceptions=("10.0.0.0/8",)), SDNRoute(destination_prefix="10.96.0.0/12"))


def test_keys_in_any_case() -> None:
    found = decode_attachment(
        conf(DNS={"Nameservers": ["10.96.0.10"], "Search": ["x"]}, IPMasq=True), CniArgs()
    )
    assert found.dns == Dns(nameservers=("10.96.0.10",), search=("x",))
    assert found.masquerade


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mtu": 70000}, "mtu: must be from 0 to 65535, got 70000"),
        ({"mtu": "1500"}, "mtu: expected a whole number, got a string"),
        ({"ipMasq": 1}, "ipMasq: expected true or false, got the number 1"),
        ({"isDefaultGateway": "yes"}, "isDefaultGateway: expected true or false, got a string"),
        ({"ipMasqNetwork": "10.0.0.0"}, "ipMasqNetwork: '10.0.0.0' is not a prefix"),
        ({"network": 5}, "network: expected an object, got the number 5"),
        ({"dns": {"nameservers": ["dns.example"]}}, "dns.nameservers[0]: 'dns.example' does not appear"),
        ({"args": {"cni": {"ips": ["10.1.0.999"]}}}, "args.cni.ips[0]: '10.1.0.999' does not"),
        ({"runtimeConfig": {"mac": "x"}}, "runtimeConfig.mac: 'x' is not the MAC address"),
        ({"runtimeConfig": {"ips": "10.1.0.2"}}, "runtimeConfig.ips: expected a list, got a string"),
        ({"runtimeConfig": {"dns": {"servers": ["x"]}}}, "runtimeConfig.dns.servers[0]: 'x' does not"),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}},
            "runtimeConfig.portMappings[0].hostPort: must be a port from 1 to 65535",
        ),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}},
            "runtimeConfig.portMappings[0].protocol: 'icmp' cannot be mapped; known: tcp, udp, sctp",
        ),
        (
            {"runtimeConfig": {"bandwidth": {"ingressRate": 8000}}},
            "runtimeConfig.bandwidth.ingressBurst: must be given with ingressRate",
        ),
        (
            {"runtimeConfig": {"bandwidth": {"egressBurst": 8000}}},
            "runtimeConfig.bandwidth.egressRate: must be given with egressBurst",
        ),
        (
            {"runtimeConfig": {"bandwidth": {"egressRate": 7, "egressBurst": 8000}}},
            "runtimeConfig.bandwidth.egressRate: must be at least 8 bits per second, got 7",
        ),
        ({"policies": [{"value": {}}]}, "policies[0].name: is required"),
        ({"policies": [{"name": "EndpointPolicy"}]}, "policies[0].value: a policy needs a Type"),
        (
            {"policies": [{"name": "EndpointPolicy", "value": {"Type": "OutBoundNAT", "ExceptionList": []}}]},
            "policies[0].value.Type: expected",
        ),
        (
            {
                "policies": [
                    {"name": "EndpointPolicy", "value": {"Type": "QOS", "Settings": {}}},
                    {
                        "name": "EndpointPolicy",
                        "value": {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/99"]}},
                    },
                ]
            },
            "policies[1].Settings.Exceptions[0]: '10.0.0.0/99' is neither",
        ),
        (
            {
                "policies": [
                    {"name": "EndpointPolicy", "value": {"Type": "VSID", "Settings": {"IsolationId": 5}}}
                ]
            },
            "policies[0].Type: VSID is not a policy of an endpoint",
        ),
        ({"prevResult": []}, "prevResult: expected an object, got a list"),
    ],
)
def test_faults_name_their_key(keys: dict[str, Any], message: str) -> None:
    assert fault(**keys).startswith(message)


def test_previous_result_of_an_older_version() -> None:
    value = conf(cniVersion="0.2.0", prevResult={"ip4": {"ip": "10.1.0.5/24", "gateway": "10.1.0.1"}})
    found = decode_previous(value)
    assert found is not None
    assert found.ips == (IpConfig("10.1.0.5/24", "10.1.0.1"),)
    assert decode_previous(conf()) is None


def test_a_configuration_for_an_older_plugin() -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mtu": 1450, "sandbox": "/x"}],
        "ips": [{"address": "10.1.0.5/24", "interface": 0}],
    }
    found = as_version(conf(prevResult=previous, ipam={"type": "static", "addresses": []}), "0.4.0")
    assert found.cni_version == "0.4.0"
    assert found.value == {
        **BASE,
        "cniVersion": "0.4.0",
        "ipam": {"type": "static", "addresses": []},
        "prevResult": {
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"version": "4", "address": "10.1.0.5/24", "interface": 0}],
        },
    }


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_valid_attachments(key: str) -> None:
    found = decode_valid_attachments(conf(**{key: [{"containerID": "a", "ifname": "eth0"}]}))
    assert found == {("a", "eth0")}
    assert decode_valid_attachments(conf(**{key: []})) == frozenset()
    assert (
        decode_valid_attachments(conf(**{key: None})) == frozenset()
    )  # libcni's word for it: of a nil slice


def test_no_list_of_valid_attachments_is_not_an_empty_one() -> None:
    with pytest.raises(CniError, match=r"cni\.dev/valid-attachments: is required for GC"):
        decode_valid_attachments(conf())
    with pytest.raises(CniError, match=r"valid-attachments\[0\].ifname: is required"):
        decode_valid_attachments(conf(**{"cni.dev/valid-attachments": [{"containerID": "a"}]}))
