/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * lb.h - the layers LB and PORTMAP of a first packet's walk: VIP -> DIP, and the way to the backend; a port of the node's
 * that is an endpoint's.
 *
 * sw_balance() leaves the choice in p->backend and what routing needs to know of it beside; 0 = no service of ours.
 * Pods reach a backend from their own network as they reach any address, so that nothing is translated but the VIP.
 * Clients that a backend could not answer (from outside, through the tunnel, from another network) are given the
 * node's own address in the backend's network.
 */
#ifndef SAMEWIRE_LB_H
#define SAMEWIRE_LB_H

#include "choose.h"
#include "direct.h"
#include "tables.h"

#define SW_REFUSED (-104) /* of the walk: no endpoints, and the client is to be told */

SW_INLINE int sw_in_source_ranges(const struct sw_packet *p, __u32 service)
{
	struct sw_source_range_key key = {
		.prefix_bits = 64 + (p->family == 4 ? 32 : 128),
		.service = service,
		.family = p->family,
	};

	sw_copy_address(&key.address, &p->first.source);
	return bpf_map_lookup_elem(&sw_source_ranges, &key) != 0;
}

/* What the rest of the walk needs to know of the chosen backend. */
SW_INLINE int sw_use_backend(struct sw_packet *p, __u32 id, __u32 how, __u16 flags)
{
	struct sw_backend *backend = sw_find_backend(id);

	if (!backend) /* removed this very moment */
		return sw_drop_at(p, 0, SW_LAYER_LB, SW_REASON_NO_BACKEND, p->service);
	p->backend = id;
	p->service = backend->service;
	p->backend_scope = backend->scope;
	p->needs_flow = 1;
	sw_choose_direct(p, backend, flags);
	if (!p->is_direct) {
		sw_copy_address(&p->out.destination, &backend->address);
		p->out.destination_port = backend->port;
	}
	sw_step(p, SW_LAYER_LB, SW_STEP_REWRITE, how, backend->service, id);
	return SW_GO_ON;
}

/* A service of this packet. node_port: its destination is an address of the node, and is known not to be a VIP. */
SW_INLINE struct sw_service *sw_service_of(const struct sw_packet *p, int node_port)
{
	struct sw_service_key key = {
		.port = p->first.destination_port,
		.protocol = p->protocol,
		.family = p->family,
	};

	if (p->first_arrival == SW_FROM_UPLINK && p->first_scope != SW_SCOPE_UPLINK) /* a VLAN is no way into others */
		return 0;
	if (!node_port) {
		if (sw_zero_address(&p->first.destination)) /* the key of node ports, and nobody's address */
			return 0;
		sw_copy_address(&key.address, &p->first.destination);
	}
	return sw_find_service(&key, p->first_arrival == SW_FROM_UPLINK ? SW_SCOPE_OUTSIDE : p->first_scope);
}

SW_INLINE int sw_is_nodes_tcp(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_sock *found = bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);
	int own;

	if (!found)
		return 0;
	own = found->state != BPF_TCP_LISTEN;
	bpf_sk_release(found);
	return own;
}

/* The kernel finds a connected socket before one that takes datagrams from everybody; its state says which it is. */
SW_INLINE int sw_is_nodes_udp(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_sock *found = bpf_sk_lookup_udp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);
	int own;

	if (!found)
		return 0;
	own = found->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(found);
	return own;
}

/*
 * Whether a process of the node has this connection: it began before a service or an endpoint took the port, or it is
 * one of the node's own to a remote port like that. Listeners, and UDP sockets that are not connected, do not count: who
 * comes now is the service's. Datagrams are only asked for where they can be the node's, connections not at their first packet.
 */
SW_INLINE int sw_is_nodes_own(struct __sk_buff *skb, const struct sw_packet *p, __u32 node_port)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = p->family == 4 ? sizeof(tuple.ipv4) : sizeof(tuple.ipv6);

	if (p->protocol == IPPROTO_UDP ? !node_port && p->first_arrival != SW_FROM_UPLINK :
					 p->protocol != IPPROTO_TCP || p->tcp_flags == SW_TCP_SYN || p->fragment)
		return 0;
	if (p->family == 4) {
		__builtin_memcpy(&tuple.ipv4.saddr, p->first.source.b, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, p->first.destination.b, 4);
		tuple.ipv4.sport = p->first.source_port;
		tuple.ipv4.dport = p->first.destination_port;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, p->first.source.b, 16);
		__builtin_memcpy(tuple.ipv6.daddr, p->first.destination.b, 16);
		tuple.ipv6.sport = p->first.source_port;
		tuple.ipv6.dport = p->first.destination_port;
	}
	return p->protocol == IPPROTO_UDP ? sw_is_nodes_udp(skb, &tuple, size) : sw_is_nodes_tcp(skb, &tuple, size);
}

/* The host port of this packet, whose destination is an address of the node and no service's. */
SW_INLINE struct sw_portmap *sw_portmap_of(const struct sw_packet *p)
{
	if (p->first_arrival == SW_FROM_TUNNEL)
		return 0;
	return sw_find_portmap(p->family, p->protocol, &p->first.destination, p->first.destination_port, 1);
}

/* PORTMAP: a port of the node itself is an endpoint's. Sets the target port. */
SW_INLINE int sw_use_portmap(struct sw_packet *p, const struct sw_portmap *map)
{
	sw_aim_at(p, map);
	sw_count_rule(map->port, (__u32)p->family << 24 | (__u32)p->protocol << 16 | bpf_ntohs(p->first.destination_port),
		      SW_COUNTED_PORTMAP);
	sw_step(p, SW_LAYER_PORTMAP, SW_STEP_REWRITE, 0, 0, map->port);
	return SW_GO_ON;
}

/*
 * The layer. node_port: it is no VIP, but an address of the node, whose ports may be a service's or an endpoint's (layer
 * PORTMAP). Returns SW_GO_ON (p->backend and p->forward say what it is), a drop, or SW_REFUSED.
 */
__noinline int sw_balance(struct __sk_buff *skb, __u32 node_port)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_portmap *map = 0;
	struct sw_service *service;
	__u32 hash, backend, how = SW_CHOICE_HASH;

	SW_USE_CONTEXT(skb);
	if (!p || !sw_has_ports(p->protocol))
		return SW_GO_ON;
	if (p->kept)
		return sw_use_backend(p, p->kept, SW_CHOICE_KEPT, 0);
	service = sw_service_of(p, node_port);
	if (!service && node_port)
		map = sw_portmap_of(p);
	if ((!service && !map) || sw_is_nodes_own(skb, p, node_port))
		return SW_GO_ON;
	if (map)
		return sw_use_portmap(p, map);
	p->service = service->service;
	sw_copy_address(&p->service_source, &service->source);
	if (service->flags & SW_SERVICE_SOURCE_RANGES && !sw_in_source_ranges(p, service->service)) {
		sw_count_service(service->service, SW_COUNT_REFUSED);
		return sw_drop_at(p, 0, SW_LAYER_LB, SW_REASON_SOURCE_RANGE, service->service);
	}
	hash = service->flags & (SW_SERVICE_BY_CLIENT | SW_SERVICE_BY_PROTOCOL) ?
		       sw_hash_client(&p->first.source, &p->first.destination, service->flags, p->protocol) :
		       sw_hash_tuple(&p->first);
	backend = sw_choose(service, &p->first.source, p->family, hash, &how);
	if (backend) {
		sw_count_service(service->service, SW_COUNT_CONNECTION);
		sw_count(SW_COUNTER_LB_CONNECTIONS);
		return sw_use_backend(p, backend, how, service->flags);
	}
	sw_count_service(service->service, SW_COUNT_REFUSED);
	if (service->flags & SW_SERVICE_REJECT)
		return SW_REFUSED;
	return sw_drop_at(p, 0, SW_LAYER_LB, SW_REASON_NO_BACKEND, service->service);
}

/* The node's own address where the backend is, for a client that it could not answer. */
SW_INLINE int sw_lend_source(struct sw_packet *p)
{
	struct sw_config *config = sw_config_here();
	const struct sw_addr *source = &p->service_source;

	p->wants_snat = 1;
	if (p->kept) /* it has one */
		return SW_GO_ON;
	if (!config)
		return sw_drop(p, SW_LAYER_LB, SW_REASON_INTERNAL);
	if (p->backend_scope == SW_SCOPE_UPLINK)
		source = sw_side6(p) ? &config->address[1] : &config->address[0];
	if (sw_zero_address(source))
		return sw_drop_at(p, 0, SW_LAYER_LB, SW_REASON_NO_SOURCE, p->service);
	sw_copy_address(&p->out.source, source);
	sw_step(p, SW_LAYER_NAT, SW_STEP_REWRITE, SW_NAT_SNAT, 0, 0);
	return SW_GO_ON;
}

/* The way to the backend from outside its network: from the wire, the tunnel, the host, or a pod of another network. */
SW_INLINE int sw_route_across(struct sw_packet *p)
{
	struct sw_route *route = sw_find_route(p->backend_scope, p->family, &p->out.destination);
	struct sw_endpoint *endpoint;

	if (!route)
		return sw_drop_at(p, 0, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE, p->service);
	p->out_scope = p->backend_scope;
	p->route_flags = route->flags;
	p->forward.target = route->nexthop;
	switch (route->kind) {
	case SW_ROUTE_LOCAL:
		endpoint = sw_find_endpoint(p->backend_scope, p->family, &p->out.destination);
		if (!endpoint)
			return sw_drop_at(p, 0, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT, p->service);
		p->forward.fate = endpoint->port ? SW_TO_PORT : SW_TO_TUNNEL;
		p->forward.target = endpoint->port ?: endpoint->nexthop;
		break;
	case SW_ROUTE_TUNNEL:
		p->forward.fate = SW_TO_TUNNEL;
		break;
	case SW_ROUTE_UPLINK:
		p->forward.fate = SW_TO_UPLINK;
		break;
	case SW_ROUTE_HOST: /* a process of the node; what it answers comes from where the client is */
		p->forward.fate = SW_TO_HOST;
		p->forward.target = p->first_arrival == SW_FROM_HOST ? SW_LOOPBACK : 0;
		p->out_scope = p->first_scope;
		return SW_GO_ON;
	default:
		return sw_drop_at(p, 0, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE, p->service);
	}
	if (p->first_arrival == SW_FROM_UPLINK ?
		    p->out_scope != SW_SCOPE_UPLINK || p->forward.fate == SW_TO_UPLINK :
		    p->forward.fate != SW_TO_PORT && route->flags & SW_ROUTE_DECREMENT)
		p->forward.flags |= SW_DECREMENT;
	return p->forward.fate == SW_TO_PORT ? SW_GO_ON : sw_lend_source(p);
}

/* Whether a pod reaches the backend as it would reach its address without any service. */
SW_INLINE int sw_backend_is_near(const struct sw_packet *p)
{
	struct sw_endpoint *endpoint;

	if (p->first_arrival != SW_FROM_POD)
		return 0;
	if (p->backend_scope == p->first_scope)
		return 1;
	if (p->backend_scope != SW_SCOPE_UPLINK)
		return 0;
	endpoint = sw_find_endpoint(SW_SCOPE_UPLINK, p->family, &p->out.destination);
	return !endpoint || !endpoint->port;
}

#endif /* SAMEWIRE_LB_H */
