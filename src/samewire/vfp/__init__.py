"""The pure middle: HNS objects become table entries, are compared with the kernel, explained and simulated.

No I/O and no kernel here: every function maps values to values. The contract for those who call it:

``vfp.address``
    ``Address(family, packed)``, ``Prefix(family, packed, bits)`` (packed: 16 bytes), ``parse_address(text)``,
    ``parse_prefix(text)``, ``parse_interface(text)`` (host bits kept), ``parse_mac(text)``,
    ``mac_text(mac)``, ``address_text(family, packed)``.
``vfp.tables``
    One frozen record a C structure (``Port``, ``EndpointKey``, ``Flow`` ...), each with ``pack() -> bytes``,
    ``unpack(bytes)``, ``size``, ``c_name``; ``Id(value)`` for u32 keys and ``Count(value)`` for u64 values.
    ``TABLES: dict[str, Table(name, key, value, kind, max_entries, compiled)]``, kind one of ``Kind.HASH,
    LPM, ARRAY, LRU, PERCPU_HASH, PERCPU_ARRAY``. ``compiled`` tables hold wanted state and are audited.
``vfp.constants``
    ``RouteKind, Layer, Reason, Arrival, Fate, Counter, PortFlag, RouteFlag, FlowFlag ...`` and sizes.
``vfp.model``
    ``Entries = Mapping[table name, Mapping[key record, value record]]``, ``NodeFacts``, ``Numbers``
    (Protocol: ``number(kind, key) -> int``), ``PortLink``, ``HostBinding``, ``Compiled(entries, binding)``.
``vfp.compile``
    | ``compile_node(facts, numbers) -> Compiled``
    | ``compile_network(network, facts, numbers) -> Compiled``
    | ``compile_link(endpoint, network, facts, netns_path) -> PortLink`` (before the veth exists)
    | ``compile_endpoint(endpoint, network, facts, numbers, port_ifindex, generation) -> Compiled``
      (port_ifindex: of the host end; 0 and any generation for a remote endpoint)
    | ``compile_route(route, network, facts, numbers) -> Compiled`` (an SDNRoute object)
``vfp.diff``, ``vfp.ownership``
    | ``Put(table, key, value)``, ``Remove(table, key)``: one ``Operation``, with ``describe() -> str``
    | ``diff(wanted: Entries, actual: Entries) -> list[Operation]`` for the audit
    | ``change(before: Entries, after: Entries) -> list[Operation]`` for one object
    | ``apply(operations, tables) -> dict`` (pure, for fakes and tests)
    | ``Ownership``: ``replace(owner, entries) -> list[Operation]``, ``remove(owner) -> list[Operation]``,
      ``tables() -> Entries``, ``owners(table, key)``, ``entries(owner)``: shared entries go when their last
      owner goes
``vfp.layers``, ``vfp.render``
    ``port_layers(tables, port) -> PortView``, ``all_ports(tables)``: port -> layers -> groups -> rules, as
    VFP shows them; ``record_json(record, family)``, ``record_text(record, family)`` for any record.
``vfp.numbers``
    ``MemoryNumbers()``: a `Numbers` in memory, for dry runs and tests.
"""
