/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * tables.h - look-ups in the rule tables, one small function each.
 */
#ifndef SAMEWIRE_TABLES_H
#define SAMEWIRE_TABLES_H

#include "packet.h"

SW_INLINE struct sw_port *sw_find_port(__u32 id)
{
	return bpf_map_lookup_elem(&sw_ports, &id);
}

/* What a flow keeps of a port: moves when its policy does, and when the IP sets that its rules name do. */
SW_INLINE __u32 sw_generation_of(const struct sw_port *port)
{
	__u64 number = port->acl_space;
	struct sw_acl_space *space = number ? bpf_map_lookup_elem(&sw_acl_spaces, &number) : 0;

	return port->generation + (space ? space->generation * SW_SPACE_FACTOR : 0);
}

SW_INLINE struct sw_nexthop *sw_find_nexthop(__u32 id)
{
	return bpf_map_lookup_elem(&sw_nexthops, &id);
}

SW_INLINE struct sw_route_key sw_route_key_of(__u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_route_key key = {
		.prefix_bits = 32 + (family == 4 ? 32 : 128),
		.scope = scope,
		.family = family,
	};

	sw_copy_address(&key.address, address);
	return key;
}

SW_INLINE struct sw_route *sw_find_route(__u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_route_key key = sw_route_key_of(scope, family, address);

	return bpf_map_lookup_elem(&sw_routes, &key);
}

/* An endpoint's own route to an address, 0 where its network's is longer, or it has none. */
SW_COLD static __noinline struct sw_route *sw_find_own_route(__u64 set, __u8 family, const struct sw_addr *address,
							     const struct sw_route *route)
{
	struct sw_own_route_key key = {
		.prefix_bits = 96 + (family == 4 ? 32 : 128),
		.set_low = (__u32)set,
		.set_high = (__u32)(set >> 32),
		.family = family,
	};
	struct sw_route *own;

	sw_copy_address(&key.address, address);
	own = bpf_map_lookup_elem(&sw_own_routes, &key);
	return own && (!route || own->bits >= route->bits) ? own : 0;
}

/* The way of what an endpoint sends; set: its own routes. */
SW_INLINE struct sw_route *sw_find_way(__u64 set, __u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_route *route = sw_find_route(scope, family, address);
	struct sw_route *own = set ? sw_find_own_route(set, family, address, route) : 0;

	return own ?: route;
}

SW_INLINE struct sw_endpoint *sw_find_endpoint(__u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_endpoint_key key = { .scope = scope, .family = family };

	sw_copy_address(&key.address, address);
	return bpf_map_lookup_elem(&sw_endpoints, &key);
}

/* What the network's policies say about an address that is nobody's here. */
SW_INLINE struct sw_neighbour_entry *sw_find_neighbour(__u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_route_key key = sw_route_key_of(scope, family, address);

	return bpf_map_lookup_elem(&sw_neighbours, &key);
}

SW_INLINE int sw_is_host_address(__u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_route *route = sw_find_route(scope, family, address);

	return route && route->kind == SW_ROUTE_HOST;
}

SW_INLINE int sw_is_loopback(__u8 family, const struct sw_addr *address)
{
	const __be32 *word = (const __be32 *)address->b;

	if (family == 4)
		return address->b[0] == 127;
	return !word[0] && !word[1] && !word[2] && word[3] == bpf_htonl(1);
}

/*
 * Whether an address is the node itself: loopback, or one of its own on the underlay or in a pod network. Global: verified
 * once.
 */
__noinline int sw_is_node(__u32 family, const struct sw_addr *address)
{
	struct sw_route *route;

	if (!address)
		return 0;
	if (sw_is_loopback(family, address) || sw_is_host_address(SW_SCOPE_UPLINK, family, address))
		return 1;
	route = sw_find_route(SW_SCOPE_HOST, family, address);
	return route && route->kind == SW_ROUTE_SCOPE && sw_is_host_address(route->scope, family, address);
}

/* Whether an address of the scope is an endpoint's, here or behind another node. */
SW_INLINE int sw_is_local_address(__u16 scope, __u8 family, const struct sw_addr *address)
{
	struct sw_route *route = sw_find_route(scope, family, address);

	return route && route->kind == SW_ROUTE_LOCAL;
}

/* A host port: for this very address, else for every address of the node (any_address says it is one). */
SW_INLINE struct sw_portmap *sw_find_portmap(__u8 family, __u8 protocol, const struct sw_addr *address, __be16 port,
					     int any_address)
{
	struct sw_portmap_key key = { .port = port, .protocol = protocol, .family = family };
	struct sw_portmap *map;

	sw_copy_address(&key.address, address);
	map = bpf_map_lookup_elem(&sw_portmaps, &key);
	if (map || !any_address)
		return map;
	__builtin_memset(&key.address, 0, sizeof(key.address));
	return bpf_map_lookup_elem(&sw_portmaps, &key);
}

/* Whether the node's own packets to a mapping's endpoint get there: not into a network that it has no part in. */
SW_INLINE int sw_is_mapped_for_node(const struct sw_portmap *map, __u8 family)
{
	struct sw_route *route = sw_find_route(SW_SCOPE_HOST, family, &map->address);

	return route && route->kind == SW_ROUTE_SCOPE && route->scope == map->scope;
}

SW_INLINE struct sw_nat *sw_find_nat(__u32 set, __u8 family, const struct sw_addr *address)
{
	struct sw_nat_key key = {
		.prefix_bits = 64 + (family == 4 ? 32 : 128),
		.set = set,
		.family = family,
	};

	sw_copy_address(&key.address, address);
	return bpf_map_lookup_elem(&sw_nat, &key);
}

#endif /* SAMEWIRE_TABLES_H */
