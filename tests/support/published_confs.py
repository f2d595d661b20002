"""Configurations that the authors of Windows plugins have published, word for word, and what they need to be there."""

from __future__ import annotations

import json
from typing import Final

import msgspec

from tests.support.node import Json


class Published(msgspec.Struct, frozen=True):
    """A configuration (or a list of one), and the network that its plugin expects: "" = it makes its own."""

    text: str
    network_type: str
    subnet: str = "10.244.1.0/24"

    @property
    def conf(self) -> Json:
        """What a runtime hands to the plugin."""
        value: Json = json.loads(self.text)
        plugins = value.pop("plugins", None)
        if plugins is None:
            return value
        (plugin,) = plugins
        return {**plugin, "name": value["name"], "cniVersion": value["cniVersion"]}


PUBLISHED: Final = {
    "win-bridge sample-v1": Published(
        """{"name":"cbr0","type":"win-bridge","dns":{"nameservers":["11.0.0.10"],"search":["svc.cluster.local"]},
        "policies":[{"name":"EndpointPolicy","value":{"Type":"OutBoundNAT","ExceptionList":["192.168.0.0/16",
        "11.0.0.0/8","10.137.196.0/23"]}},{"name":"EndpointPolicy","value":{"Type":"ROUTE",
        "DestinationPrefix":"11.0.0.0/8","NeedEncap":true}}],"loopbackDSR":true}""",
        "L2Bridge",
    ),
    "win-bridge sample-v2": Published(
        """{"name":"cbr0","type":"flannel","delegate":{"apiVersion":2,"type":"win-bridge","policies":[
        {"name":"EndpointPolicy","value":{"Type":"OutBoundNAT","Settings":{"Exceptions":["192.168.0.0/16",
        "11.0.0.0/8"]}}},{"name":"EndpointPolicy","value":{"Type":"SDNRoute","Settings":{
        "DestinationPrefix":"11.0.0.0/8","NeedEncap":true}}}],"loopbackDSR":true}}""",
        "L2Bridge",
    ),
    "win-overlay sample-v2": Published(
        """{"cniVersion":"0.2.0","name":"OVNKubernetesHybridOverlayNetwork","type":"win-overlay","ipam":{
        "type":"host-local","subnet":"10.132.0.0/24"},"apiVersion":2,"capabilities":{"portMappings":true,
        "dns":true},"policies":[{"name":"EndpointPolicy","value":{"Type":"ProviderAddress","Settings":{
        "ProviderAddress":"10.0.133.170"}}}]}""",
        "Overlay",
        "10.132.0.0/24",
    ),
    "microsoft/SDN flannel overlay": Published(
        """{"cniVersion":"0.2.0","name":"vxlan0","type":"flannel","delegate":{"type":"win-overlay","dns":{
        "Nameservers":["11.0.0.10"],"Search":["svc.cluster.local"]},"Policies":[{"Name":"EndpointPolicy",
        "Value":{"Type":"OutBoundNAT","ExceptionList":["192.168.0.0/16","11.0.0.0/8"]}}]}}""",
        "Overlay",
    ),
    "sig-windows-tools flannel overlay": Published(
        """{"name":"flannel.4096","cniVersion":"0.3.0","type":"flannel","capabilities":{"portMappings":true,
        "dns":true},"delegate":{"type":"sdnoverlay","AdditionalArgs":[{"Name":"EndpointPolicy","Value":{
        "Type":"SDNROUTE","Settings":{"DestinationPrefix":"10.96.0.0/12","NeedEncap":true}}}]}}""",
        "Overlay",
    ),
    "azure-windows": Published(
        """{"cniVersion":"0.3.0","name":"azure","adapterName":"","plugins":[{"type":"azure-vnet","capabilities":{
        "portMappings":true,"dns":true},"ipam":{"type":"azure-vnet-ipam"},"dns":{"Nameservers":["10.0.0.10",
        "168.63.129.16"],"Search":["svc.cluster.local"]},"AdditionalArgs":[{"Name":"EndpointPolicy","Value":{
        "Type":"OutBoundNAT","ExceptionList":["10.240.0.0/16","10.0.0.0/8"]}},{"Name":"EndpointPolicy",
        "Value":{"Type":"ROUTE","DestinationPrefix":"10.0.0.0/8","NeedEncap":true}}]}]}""",
        "",
    ),
}

IPAM: Final = """#!/usr/bin/env python3
# Stands in for azure-vnet-ipam: counts addresses up.
import json, os, pathlib, sys
conf = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "VERSION":
    print(json.dumps({"cniVersion": "0.3.0", "supportedVersions": ["0.3.0"]}))
elif os.environ["CNI_COMMAND"] == "ADD":
    given = pathlib.Path(__file__).with_suffix(".given")
    names = given.read_text().split() if given.exists() else []
    names += [os.environ["CNI_CONTAINERID"]] * (os.environ["CNI_CONTAINERID"] not in names)
    given.write_text(" ".join(names))
    address = f"10.244.1.{4 + names.index(os.environ['CNI_CONTAINERID'])}/24"
    print(json.dumps({"cniVersion": "0.3.0", "ips": [{"version": "4", "address": address, "gateway": "10.244.1.1"}]}))
"""
