"""Kubernetes objects, cut down to what a proxy, a policy agent and an overlay controller read.

Decoded straight from JSON: a field that is not listed here is skipped by the decoder and never becomes an object, so
50,000 Services with as many EndpointSlices fit into memory. Add a field only when a controller uses it.

- Labels and annotations of Services and EndpointSlices are structs of the few keys that mean something to us.
- Values that repeat (namespaces, node and zone names, port names) are kept once.
- ``resource_version`` belongs to the reflector; it is empty in what a source hands over, so that ``==`` compares
  contents.

All values are immutable; share them freely.
"""

from __future__ import annotations

from typing import TypeVar

from samewire.kube.base import (
    Key,
    KubeObject,
    Metadata,
    Protocol,
)
from samewire.kube.node_model import (
    Container,
    ContainerPort,
    LabelledMetadata,
    Namespace,
    Node,
    NodeAddress,
    NodeMetadata,
    NodeSpec,
    NodeStatus,
    Pod,
    PodCondition,
    PodIP,
    PodSpec,
    PodStatus,
    Taint,
)
from samewire.kube.service_model import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    Family,
    Hint,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServiceAnnotations,
    ServiceLabels,
    ServiceMetadata,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
    SliceAnnotations,
    SliceLabels,
    SliceMetadata,
    TargetRef,
    TrafficPolicy,
)

Object = Service | EndpointSlice | Node | Namespace | Pod
"""Every kind a source gives."""

ObjectT = TypeVar("ObjectT", Service, EndpointSlice, Node, Namespace, Pod)

__all__ = [
    "ClientIPConfig",
    "Container",
    "ContainerPort",
    "Endpoint",
    "EndpointConditions",
    "EndpointHints",
    "EndpointPort",
    "EndpointSlice",
    "Family",
    "Hint",
    "Key",
    "KubeObject",
    "LabelledMetadata",
    "LoadBalancerIngress",
    "LoadBalancerStatus",
    "Metadata",
    "Namespace",
    "Node",
    "NodeAddress",
    "NodeMetadata",
    "NodeSpec",
    "NodeStatus",
    "Object",
    "ObjectT",
    "Pod",
    "PodCondition",
    "PodIP",
    "PodSpec",
    "PodStatus",
    "Protocol",
    "Service",
    "ServiceAnnotations",
    "ServiceLabels",
    "ServiceMetadata",
    "ServicePort",
    "ServiceSpec",
    "ServiceStatus",
    "SessionAffinityConfig",
    "SliceAnnotations",
    "SliceLabels",
    "SliceMetadata",
    "Taint",
    "TargetRef",
    "TrafficPolicy",
]
