/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * uplink_out.h - what the node's own processes send by the uplink: answers in a service's name, questions to one by SCTP,
 * ports of the NAT pool; and the MAC of a pod's packets under its own address. By lo, to itself: SCTP alone.
 */
#ifndef SAMEWIRE_UPLINK_OUT_H
#define SAMEWIRE_UPLINK_OUT_H

#include "connect.h"
#include "fragment.h"
#include "icmp_error.h"
#include "parse.h"

/*
 * What a process of the node answers to an outside client of a service: it has seen its own address, the client must
 * see the VIP.
 */
SW_INLINE int sw_host_reply(struct __sk_buff *skb, struct sw_packet *p, struct sw_flow *flow)
{
	struct sw_action *action = p->direction ? &flow->action[1] : &flow->action[0];

	if (action->fate != SW_TO_UPLINK || p->direction == (flow->flags & SW_FLOW_INITIATOR))
		return SW_PASS;
	if (!flow->backend || !bpf_map_lookup_elem(&sw_backends, &flow->backend))
		return sw_drop(p, SW_LAYER_LB, SW_REASON_BACKEND_GONE);
	sw_touch(p, flow, 1);
	sw_count_in_flow(skb, p, flow->slot, p->direction);
	return sw_rewrite(skb, p, action) ? sw_drop(p, SW_LAYER_NAT, SW_REASON_INTERNAL) : SW_PASS;
}

/* Without reading more of what lo carries than this tells. */
SW_INLINE int sw_is_sctp(struct __sk_buff *skb)
{
	const __u8 *l3 = (void *)(long)skb->data + ETH_HLEN;
	__u32 at = skb->protocol == bpf_htons(ETH_P_IPV6) ? 6 : 9; /* the next header, the protocol */

	return (void *)(l3 + 10) <= (void *)(long)skb->data_end && l3[at] == IPPROTO_SCTP;
}

/*
 * Whether a packet of the node's own is for a service: SCTP's, whose sockets no hook translates. (Others' are translated
 * before they are routed.) What the node forwards for somebody else is not its own.
 */
SW_COLD static __noinline int sw_asks_service(struct sw_packet *p)
{
	if (p->fragment || !sw_is_host_address(SW_SCOPE_UPLINK, p->family, &p->tuple.source))
		return 0;
	sw_copy_tuple(&p->first, &p->tuple);
	p->first_arrival = SW_FROM_HOST;
	p->first_scope = SW_SCOPE_HOST;
	return sw_service_of(p, 0) != 0;
}

/*
 * What the node sends to itself: by SCTP to one of its ports that is a service's or an endpoint's, and what either side
 * says then. No route leads that to the uplink, so the program is on lo, too, while there is such a port.
 */
SW_COLD static __noinline int sw_watch_loopback(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_config *config = sw_config_here();
	struct sw_portmap *map;
	struct sw_route *route;
	__u16 scope;
	int known;

	sw_arrive(p, SW_FROM_HOST, SW_SCOPE_HOST, skb->ifindex, 0);
	if (!config || p->protocol != IPPROTO_SCTP || p->fragment)
		return SW_PASS;
	route = sw_find_route(SW_SCOPE_HOST, p->family, &p->tuple.destination);
	scope = route && route->kind == SW_ROUTE_SCOPE ? route->scope : SW_SCOPE_HOST;
	sw_copy_tuple(&p->first, &p->tuple);
	p->first_arrival = SW_FROM_HOST;
	p->first_scope = scope;
	sw_make_key(&p->key, &p->tuple, scope, p->family, p->protocol);
	known = bpf_map_lookup_elem(&sw_flows, &p->key) || sw_service_of(p, 0);
	if (!known && !sw_is_node(p->family, &p->tuple.destination)) /* link-local, or only in a local route */
		return SW_PASS;
	if (!known && !sw_service_of(p, 1)) {
		map = sw_portmap_of(p);
		if (!map || !sw_is_mapped_for_node(map, p->family))
			return SW_PASS;
	}
	return bpf_redirect(config->host_peer_ifindex, BPF_F_INGRESS);
}

/*
 * A host socket that uses a port of the NAT pool (an explicit bind, or an ICMP identifier) is put into the flow table,
 * so that the allocator finds the port taken.
 */
SW_INLINE int sw_watch_host(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_cursors *cursors = sw_cursors_here();
	struct sw_config *config = sw_config_here();
	struct sw_flow *flow;
	int replies, pool;
	__u16 port;

	sw_arrive(p, SW_FROM_HOST, SW_SCOPE_UPLINK, skb->ifindex, 0);
	if (!config || !cursors || p->neighbour)
		return SW_PASS;
	replies = cursors->host_replies != 0;
	if (p->icmp_error)
		return replies ? sw_host_error(skb, p) : SW_PASS;
	if (p->protocol == IPPROTO_SCTP && sw_asks_service(p))
		return bpf_redirect(config->host_peer_ifindex, BPF_F_INGRESS);
	if (p->fragment && (!replies || sw_fragment(p) == SW_UNKNOWN) && p->fragment == SW_FRAGMENT_LATER)
		return SW_PASS;
	port = bpf_ntohs(p->tuple.source_port);
	pool = port >= config->nat_port_low && port <= config->nat_port_high;
	if (!pool && !replies)
		return SW_PASS;
	if (p->protocol == IPPROTO_UDP && p->tuple.destination_port == config->vxlan_port)
		return SW_PASS;
	p->direction = sw_make_key(&p->key, &p->tuple, SW_SCOPE_UPLINK, p->family, p->protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (flow) {
		if (!(flow->flags & SW_FLOW_HOST))
			return replies ? sw_host_reply(skb, p, flow) : SW_PASS;
		sw_touch(p, flow, 0);
		sw_count_in_flow(skb, p, flow->slot, p->direction);
		return SW_PASS;
	}
	if (!pool || p->fragment == SW_FRAGMENT_LATER)
		return SW_PASS;
	__builtin_memset(&p->flow, 0, sizeof(p->flow));
	p->flow.flags = SW_FLOW_HOST | (p->direction ? SW_FLOW_INITIATOR : 0);
	p->flow.tcp[0] = p->tcp_flags;
	p->flow.seen_tick = sw_now_tick();
	p->flow.arrival = SW_FROM_HOST;
	sw_copy_key(&p->flow_key, &p->key);
	if (!sw_insert(0)) {
		sw_count(SW_COUNTER_HOST_FLOWS);
		sw_count_in_flow(skb, p, p->flow.slot, p->direction);
	}
	return SW_PASS;
}

/* A pod's packet under its own address: from the MAC that its network has on the underlay. */
static __noinline int sw_put_source_mac(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_endpoint *endpoint;
	struct sw_source_mac *own;

	endpoint = sw_find_endpoint(SW_SCOPE_UPLINK, p->family, &p->tuple.source);
	own = endpoint ? bpf_map_lookup_elem(&sw_source_macs, &endpoint->port) : 0;
	if (own)
		bpf_skb_store_bytes(skb, ETH_ALEN, own->mac, ETH_ALEN, 0);
	return SW_PASS;
}

#endif /* SAMEWIRE_UPLINK_OUT_H */
