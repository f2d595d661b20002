"""A client of the Kubernetes Container Runtime Interface, version 1: only the calls and fields these tests use.

The messages are built at run time from the table below: number, name and type of each field as the CRI defines them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

PACKAGE = "runtime.v1"
CALL_TIMEOUT_S = 60.0

# message: "number name [*]type"; * = repeated; a type that is a message of this table is written with a capital.
MESSAGES: dict[str, tuple[str, ...]] = {
    "DNSConfig": ("1 servers *string", "2 searches *string", "3 options *string"),
    "PortMapping": ("1 protocol int32", "2 container_port int32", "3 host_port int32"),
    "LinuxPodSandboxConfig": ("1 cgroup_parent string",),
    "PodSandboxMetadata": ("1 name string", "2 uid string", "3 namespace string", "4 attempt uint32"),
    "PodSandboxConfig": (
        "1 metadata PodSandboxMetadata", "2 hostname string", "4 dns_config DNSConfig",
        "5 port_mappings *PortMapping", "8 linux LinuxPodSandboxConfig",
    ),
    "RunPodSandboxRequest": ("1 config PodSandboxConfig",),
    "RunPodSandboxResponse": ("1 pod_sandbox_id string",),
    "StopPodSandboxRequest": ("1 pod_sandbox_id string",),
    "StopPodSandboxResponse": (),
    "RemovePodSandboxRequest": ("1 pod_sandbox_id string",),
    "RemovePodSandboxResponse": (),
    "PodSandboxStatusRequest": ("1 pod_sandbox_id string",),
    "PodSandboxNetworkStatus": ("1 ip string",),
    "PodSandboxStatus": ("1 id string", "5 network PodSandboxNetworkStatus"),
    "PodSandboxStatusResponse": ("1 status PodSandboxStatus",),
    "ContainerMetadata": ("1 name string", "2 attempt uint32"),
    "ImageSpec": ("1 image string",),
    "ContainerConfig": ("1 metadata ContainerMetadata", "2 image ImageSpec", "3 command *string"),
    "CreateContainerRequest": (
        "1 pod_sandbox_id string", "2 config ContainerConfig", "3 sandbox_config PodSandboxConfig",
    ),
    "CreateContainerResponse": ("1 container_id string",),
    "StartContainerRequest": ("1 container_id string",),
    "StartContainerResponse": (),
    "StopContainerRequest": ("1 container_id string", "2 timeout int64"),
    "StopContainerResponse": (),
    "RemoveContainerRequest": ("1 container_id string",),
    "RemoveContainerResponse": (),
    "ExecSyncRequest": ("1 container_id string", "2 cmd *string", "3 timeout int64"),
    "ExecSyncResponse": ("1 stdout bytes", "2 stderr bytes", "3 exit_code int32"),
    "StatusRequest": (),
    "RuntimeCondition": ("1 type string", "2 status bool", "3 reason string", "4 message string"),
    "RuntimeStatus": ("1 conditions *RuntimeCondition",),
    "StatusResponse": ("1 status RuntimeStatus",),
}  # fmt: skip

_Field = descriptor_pb2.FieldDescriptorProto


def _field(declaration: str) -> descriptor_pb2.FieldDescriptorProto:
    number, name, kind = declaration.split(" ")
    field = _Field(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.startswith("*"):
        field.label = _Field.LABEL_REPEATED
    kind = kind.lstrip("*")
    if kind[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    return field


def _messages() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="samewire-test-cri.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        file.message_type.add(name=name, field=[_field(field) for field in fields])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


class Cri:
    """The RuntimeService behind a unix socket. A context manager; raises ``grpc.RpcError``."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._messages = _messages()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """Call ``method`` with a request of ``fields`` (nested messages as dicts); returns the response message."""
        request = json_format.ParseDict(fields, self._messages[f"{method}Request"]())
        invoke = self._channel.unary_unary(
            f"/{PACKAGE}.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._messages[f"{method}Response"].FromString,
        )
        return invoke(request, timeout=CALL_TIMEOUT_S)
