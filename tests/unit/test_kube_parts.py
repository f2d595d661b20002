"""The pure parts below the reflector: backoff, lines, decoding, the model's words."""

from __future__ import annotations

import random

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samewire.kube.backoff import Backoff
from samewire.kube.client import _words
from samewire.kube.model import EndpointSlice, Node, Pod, Service
from samewire.kube.wire import BrokenStream, Decoder, LineSplitter


def test_backoff_doubles_with_jitter_up_to_a_bound() -> None:
    backoff = Backoff(1.0, 8.0, random.Random(1))
    delays = [backoff.next_s() for _ in range(8)]
    for delay, whole in zip(delays, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
        assert whole / 2 <= delay <= whole
    assert len(set(delays)) == 8
    backoff.reset()
    assert backoff.next_s() <= 1.0
    for _ in range(5000):
        backoff.next_s()


def test_backoff_waits_as_long_as_it_is_asked_but_not_for_ever() -> None:
    backoff = Backoff(0.1, 1.0, random.Random(1))
    assert 7.0 <= backoff.next_s(7.0) <= 7.0 * 1.25
    assert backoff.next_s(86400.0) <= 60.0 * 1.25
    assert backoff.next_s(0.0) > 0.0


@given(st.lists(st.binary(min_size=1).filter(lambda line: b"\n" not in line and line.strip())), st.data())
def test_lines_do_not_depend_on_how_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    splitter, rest = LineSplitter(), stream
    seen: list[bytes] = []
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        seen += splitter.feed(rest[:cut])
        rest = rest[cut:]
    assert seen == lines


def test_what_is_cut_off_is_no_line() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"one\n\n \r\ntwo")) == [b"one"]
    with pytest.raises(BrokenStream, match="longer than"):
        LineSplitter(max_line_bytes=10).feed(b"x" * 11)


def test_an_event_of_an_unknown_type_is_skipped_with_its_reason() -> None:
    event = Decoder(Service).event(
        b'{"type":"NOVEL","object":{"metadata":{"name":"a","resourceVersion":"7"}}}'
    )
    assert (event.type, event.object, event.version) == ("PUT", None, "7")
    assert "NOVEL" in event.message


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"type":5}', b'{"type":"ADDED","object":{}}'])
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(BrokenStream):
        Decoder(Service).event(line)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"items":5}',
        b'{"metadata":{"resourceVersion":"9"},"items":[]}',
        b'{"kind":"Service","metadata":{"name":"a","namespace":"n","resourceVersion":"9"},"spec":{}}',
        b'{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":null}',
        b'{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":5}}]}',
    ],
)
def test_what_is_no_list(body: bytes) -> None:
    with pytest.raises(BrokenStream):
        Decoder(Service).page(body)


def test_an_empty_list_may_be_null() -> None:
    page = Decoder(Service).page(b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":null}')
    assert (page.items, page.meta.resource_version, page.meta.continue_token) == ([], "5", "")


def test_empty_lists_of_a_slice_may_be_null() -> None:
    text = b'{"metadata":{"name":"a"},"addressType":"IPv4","endpoints":null,"ports":null}'
    found = msgspec.json.decode(text, type=EndpointSlice)
    assert (found.endpoints, found.ports, found.service_key) == ((), (), None)


def test_null_is_as_absent() -> None:
    """Kubernetes' own server writes null for empty lists only; what Go programs read is the same with it everywhere."""
    text = (
        b'{"metadata":{"name":"a","namespace":"x","resourceVersion":"5","labels":null},"status":null,'
        b'"spec":{"clusterIP":"10.0.0.1","clusterIPs":null,"sessionAffinity":null,"ports":[{"port":80,"nodePort":null}]}}'
    )
    wanted = {
        "metadata": {"name": "a", "namespace": "x"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    }
    decoder = Decoder(Service)
    event = decoder.event(b'{"type":"ADDED","object":%s}' % text)
    page = decoder.page(b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":[%s]}' % text)
    assert page.items == [event.object] == [msgspec.convert(wanted, Service)]
    assert (event.version, page.unreadable) == ("5", [])


def test_what_is_no_utf8_cannot_be_read() -> None:
    """A list goes on without that object; of an event nobody can say what it is about."""
    good, bad = (b'{"metadata":{"name":"%s","namespace":"x"}}' % name for name in (b"a", b"\xff"))
    page = Decoder(Service).page(
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":[%s,%s]}' % (good, bad)
    )
    assert [item.key for item in page.items] == [("x", "a")]
    ((key, reason),) = page.unreadable
    assert (key, "utf-8" in reason) == (("", ""), True)
    with pytest.raises(BrokenStream):
        Decoder(Service).event(b'{"type":"ADDED","object":%s}' % bad)


@pytest.mark.parametrize("depth", [1_000, 10_000, 100_000])
def test_what_nests_deeper_than_we_read_is_left_out(depth: int) -> None:
    """Who may write an object may put such a thing into its managedFields; API servers take ten thousand levels."""
    nested = b'{"f:\\"]}":[' * depth + b"]}" * depth
    text = (
        b'{"metadata":{"name":"a","namespace":"x","resourceVersion":"5","managedFields":[{"fieldsV1":%s}]},'
        b'"spec":{"clusterIP":"10.0.0.1"}}' % nested
    )
    decoder = Decoder(Service)
    wanted = msgspec.convert(
        {"metadata": {"name": "a", "namespace": "x"}, "spec": {"clusterIP": "10.0.0.1"}}, Service
    )
    event = decoder.event(b'{"type":"ADDED","object":%s}' % text)
    assert (event.type, event.version, event.object) == ("PUT", "5", wanted)
    assert decoder.page(
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":[%s]}' % text
    ).items == [wanted]
    gone = decoder.event(b'{"type":"DELETED","object":%s}' % text)
    assert (gone.type, gone.key) == ("DELETE", ("x", "a"))
    for broken in (nested, nested[: len(nested) // 2]):
        with pytest.raises(BrokenStream):
            decoder.event(broken)


def test_an_object_is_its_contents() -> None:
    """Versions and what is not in the model make no difference; repeated words are kept once."""
    texts = [
        b'{"kind":"ServiceList","items":[{"metadata":{"name":"a","namespace":"x-%d","resourceVersion":"%d","managedFields":[%d]},'
        b'"spec":{"ports":[{"name":"some-port","port":80}]}}]}' % (1, version, version)
        for version in (5, 6)
    ]
    (one,), (two,) = (Decoder(Service).page(text).items for text in texts)
    assert one == two
    assert one.metadata.namespace is two.metadata.namespace
    assert one.spec.ports[0].name is two.spec.ports[0].name


def test_older_fields_still_count() -> None:
    assert msgspec.convert({"spec": {"clusterIP": "10.0.0.1"}}, Service).cluster_ips == ("10.0.0.1",)
    assert msgspec.convert({"spec": {"podCIDR": "10.1.0.0/24"}}, Node).pod_cidrs == ("10.1.0.0/24",)
    assert msgspec.convert({"status": {"podIP": "10.1.0.5"}}, Pod).addresses == ("10.1.0.5",)
    assert msgspec.convert({}, Pod).addresses == ()


def test_ports_of_sidecars_count_and_those_of_other_init_containers_do_not() -> None:
    def container(number: int, **more: str) -> dict[str, object]:
        return {"name": f"c{number}", "ports": [{"containerPort": number}], **more}

    spec = {
        "containers": [container(1)],
        "initContainers": [container(2), container(3, restartPolicy="Always")],
    }
    assert [port.container_port for port in msgspec.convert({"spec": spec}, Pod).ports] == [1, 3]


def test_what_a_node_says_of_itself() -> None:
    node = msgspec.convert(
        {
            "metadata": {"labels": {"topology.kubernetes.io/zone": "z"}},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "n"},
                    {"type": "InternalIP", "address": "10.0.0.1"},
                ],
                "nodeInfo": {"operatingSystem": "windows"},
            },
        },
        Node,
    )
    assert node.zone == "z"
    assert [(one.type, one.address) for one in node.status.addresses][1:] == [("InternalIP", "10.0.0.1")]


def test_an_error_without_words_is_called_by_its_name() -> None:
    assert _words(aiohttp.ClientError("no route")) == "no route"
    assert _words(aiohttp.ClientError()) == "ClientError"
