/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * near.h - ports, next hops and backends that this CPU has just met.
 *
 * A look-up in a hash is a call, and a call is the dearest thing a program does; an array's is a few instructions of its
 * own. So packets of established flows take their two ports, or the next hop, from arrays of copies, and what they need
 * of a backend, that it is still there, from another. A copy counts for one number of sw_changes. That is read before
 * what is copied, and moved after what was changed: a copy of the old can never have the new number.
 */
#ifndef SAMEWIRE_NEAR_H
#define SAMEWIRE_NEAR_H

#include "tables.h"

#define SW_NEAR_PORTS 256 /* powers of two; whose numbers meet take turns */
#define SW_NEAR_NEXTHOPS 256
#define SW_NEAR_BACKENDS 1024

struct sw_near_port {
	__u32 id;
	__u32 changes;
	struct sw_port port; /* its generation: sw_generation_of() */
};

struct sw_near_nexthop {
	__u32 id;
	__u32 changes;
	struct sw_nexthop hop;
};

struct sw_near_backend {
	__u32 id;
	__u32 changes;
	__u32 scope;
};

SW_MAP(sw_near_ports, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct sw_near_port, SW_NEAR_PORTS, 0);
SW_MAP(sw_near_nexthops, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct sw_near_nexthop, SW_NEAR_NEXTHOPS, 0);
SW_MAP(sw_near_backends, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct sw_near_backend, SW_NEAR_BACKENDS, 0);

SW_INLINE __u32 *sw_changes_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_changes, &zero);
}

SW_INLINE struct sw_near_port *sw_place_of_port(__u32 id)
{
	__u32 place = id & (SW_NEAR_PORTS - 1);

	return bpf_map_lookup_elem(&sw_near_ports, &place);
}

SW_INLINE struct sw_near_backend *sw_place_of_backend(__u32 id)
{
	__u32 place = id & (SW_NEAR_BACKENDS - 1);

	return bpf_map_lookup_elem(&sw_near_backends, &place);
}

/* Returns whether there is such a port. Global: verified once. */
SW_COLD __noinline int sw_meet_port(__u32 id)
{
	struct sw_near_port *near = sw_place_of_port(id);
	__u32 *changes = sw_changes_here();
	const struct sw_port *port;

	if (!near || !changes)
		return 0;
	near->changes = __sync_fetch_and_add(changes, 0); /* a barrier, too */
	port = sw_find_port(id);
	near->id = port ? id : 0;
	if (!port)
		return 0;
	near->port = *port;
	near->port.generation = sw_generation_of(port);
	return 1;
}

SW_INLINE const struct sw_port *sw_near_port(const struct sw_packet *p, __u32 id)
{
	struct sw_near_port *near = sw_place_of_port(id);

	return near && ((near->id == id && near->changes == p->changes) || sw_meet_port(id)) ? &near->port : 0;
}

SW_INLINE struct sw_near_nexthop *sw_place_of_nexthop(__u32 id)
{
	__u32 place = id & (SW_NEAR_NEXTHOPS - 1);

	return bpf_map_lookup_elem(&sw_near_nexthops, &place);
}

SW_COLD __noinline int sw_meet_nexthop(__u32 id)
{
	struct sw_near_nexthop *near = sw_place_of_nexthop(id);
	__u32 *changes = sw_changes_here();
	const struct sw_nexthop *hop;

	if (!near || !changes)
		return 0;
	near->changes = __sync_fetch_and_add(changes, 0);
	hop = sw_find_nexthop(id);
	near->id = hop ? id : 0;
	if (!hop)
		return 0;
	near->hop = *hop;
	return 1;
}

SW_INLINE const struct sw_nexthop *sw_near_nexthop(const struct sw_packet *p, __u32 id)
{
	struct sw_near_nexthop *near = sw_place_of_nexthop(id);

	return near && ((near->id == id && near->changes == p->changes) || sw_meet_nexthop(id)) ? &near->hop : 0;
}

SW_COLD __noinline int sw_meet_backend(__u32 id)
{
	struct sw_near_backend *near = sw_place_of_backend(id);
	__u32 *changes = sw_changes_here();
	const struct sw_backend *backend;

	if (!near || !changes)
		return 0;
	near->changes = __sync_fetch_and_add(changes, 0);
	backend = bpf_map_lookup_elem(&sw_backends, &id);
	near->id = backend ? id : 0;
	if (!backend)
		return 0;
	near->scope = backend->scope;
	return 1;
}

SW_INLINE const struct sw_near_backend *sw_near_backend(const struct sw_packet *p, __u32 id)
{
	struct sw_near_backend *near = sw_place_of_backend(id);

	return near && ((near->id == id && near->changes == p->changes) || sw_meet_backend(id)) ? near : 0;
}

#endif /* SAMEWIRE_NEAR_H */
