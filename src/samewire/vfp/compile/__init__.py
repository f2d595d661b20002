"""Compilers: one module for each kind of object, each a pure function from objects to entries."""

from samewire.vfp.compile.endpoint import compile_endpoint
from samewire.vfp.compile.hostendpoint import compile_host_endpoint
from samewire.vfp.compile.link import compile_link
from samewire.vfp.compile.network import compile_network, compile_remote
from samewire.vfp.compile.node import compile_node
from samewire.vfp.compile.route import compile_route
from samewire.vfp.compile.sets import compile_sets

__all__ = [
    "compile_endpoint",
    "compile_host_endpoint",
    "compile_link",
    "compile_network",
    "compile_node",
    "compile_remote",
    "compile_route",
    "compile_sets",
]
