"""The variables of a CNI call."""

from __future__ import annotations

import pytest

from samewire.cni.conf import decode_conf, requested_ips
from samewire.cni.environment import CniArgs, Verb, decode_args, decode_environment
from samewire.cni.errors import CniCode, CniError
from tests.support.cni import variables


def failure(**changed: str | None) -> str:
    wanted = {name: value for name, value in {**variables("ADD"), **changed}.items() if value is not None}
    with pytest.raises(CniError) as caught:
        decode_environment(wanted)
    assert caught.value.code == CniCode.INVALID_ENVIRONMENT
    return caught.value.message


def test_a_whole_environment() -> None:
    args = (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;FOO=1;IP=10.1.0.9/24;MAC=0E-2A-00-00-00-09"
    )
    found = decode_environment(variables("ADD", "c0ffee", CNI_ARGS=args, CNI_PATH="/a:/b:"))
    assert (found.verb, found.key, found.netns_path) == (Verb.ADD, ("c0ffee", "eth0"), "/run/netns/c0ffee")
    assert found.args == CniArgs("10.1.0.9/24", "0e:2a:00:00:00:09", "shop", "web-0")
    assert found.path == ("/a", "/b")
    assert found.variables["CNI_ARGS"] == args


def test_what_is_missing_is_named() -> None:
    message = failure(CNI_CONTAINERID=None, CNI_NETNS="", CNI_IFNAME=None)
    assert message == "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_NETNS] missing"
    assert failure(CNI_COMMAND=None) == "required env variables [CNI_COMMAND] missing"
    assert failure(CNI_COMMAND="FOO") == "unknown CNI_COMMAND: FOO"
    assert failure(CNI_COMMAND="CHECK", CNI_NETNS=None) == "required env variables [CNI_NETNS] missing"


def test_del_needs_no_namespace() -> None:
    assert decode_environment(variables("DEL", CNI_NETNS="")).netns_path == ""


@pytest.mark.parametrize("verb", ["GC", "STATUS", "VERSION"])
def test_verbs_of_no_container_need_the_command_alone(verb: str) -> None:
    assert decode_environment({"CNI_COMMAND": verb}).verb == verb


@pytest.mark.parametrize("container", ["-a", ".a", "a/b", "a b", "ä", "a\n", "a;b", "../x"])
def test_bad_container_ids(container: str) -> None:
    assert "CNI_CONTAINERID" in failure(CNI_CONTAINERID=container)


def test_container_ids_are_no_longer_than_names_of_files() -> None:
    """But DEL takes any: there is nothing to remove, and a runtime would ask for it for ever."""
    assert decode_environment(variables("ADD", 255 * "a")).container_id == 255 * "a"
    for verb in ("ADD", "CHECK"):
        assert failure(CNI_COMMAND=verb, CNI_CONTAINERID=256 * "a").startswith("CNI_CONTAINERID 'aaaa")
    assert decode_environment(variables("DEL", 256 * "a")).container_id == 256 * "a"


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "a\x7fb",
        "a%d",
        "all",
        "default",
        "0123456789abcdef",
        "ääääääää",
    ],
)
def test_bad_interface_names(name: str) -> None:
    assert "CNI_IFNAME" in failure(CNI_IFNAME=name)


def test_the_longest_interface_name() -> None:
    assert decode_environment(variables("ADD", interface="0123456789abcde")).interface_name


@pytest.mark.parametrize("path", ["run/netns/x", "/run/\x01", "/" + 4096 * "x"])
def test_bad_namespace_paths(path: str) -> None:
    assert "CNI_NETNS" in failure(CNI_NETNS=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A", "CNI_ARGS: 'A' is not of the form KEY=VALUE"),
        ("=1", "CNI_ARGS: '=1' is not of the form KEY=VALUE"),
        ("IP=10.1.0.2;", "CNI_ARGS: '' is not of the form KEY=VALUE"),
        ("FOO=1;BAR=2", "CNI_ARGS: unknown keys FOO, BAR; IgnoreUnknown=1 would ignore them"),
        ("FOO=1;IgnoreUnknown=0", "CNI_ARGS: unknown keys FOO"),
        ("IP=10.1.0.300", "CNI_ARGS: IP: '10.1.0.300' does not appear to be an IPv4 or IPv6 address"),
        ("IP=10.1.0.3,", "CNI_ARGS: IP: '' does not appear to be an IPv4 or IPv6 address"),
        ("MAC=01:00:5e:00:00:01", "CNI_ARGS: MAC: '01:00:5e:00:00:01' is not the MAC address of one station"),
    ],
)
def test_bad_args(text: str, message: str) -> None:
    with pytest.raises(CniError) as caught:
        decode_args(text)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("ignore", ["1", "true", "TRUE"])
def test_unknown_args_are_ignored_on_demand(ignore: str) -> None:
    assert decode_args(f"FOO=a=b;IgnoreUnknown={ignore}") == CniArgs()
    assert decode_args("") == CniArgs()


def test_several_addresses_may_be_asked_for() -> None:
    """As the IPAM plugin static has it, with its gateway beside them."""
    found = decode_args("IP=10.1.0.9/24, FD00::0:9/64,10.1.0.7;GATEWAY=10.1.0.1")
    assert found.ip == "10.1.0.9/24,fd00::9/64,10.1.0.7"
    assert requested_ips(decode_conf(b'{"name": "net"}'), found) == ("10.1.0.9/24", "fd00::9/64", "10.1.0.7")
