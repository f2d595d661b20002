/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * direct.h - packets that keep the VIP on their way to the backend: Direct Server Return and PreserveDIP.
 *
 * The node that has chosen sends them through the tunnel to the endpoint's own MAC; the node of the endpoint matches
 * that MAC, the VIP and the port, does VIP -> own address, and answers by its own way out. So the client's address
 * stays, and replies do not pass the first node.
 */
#ifndef SAMEWIRE_DIRECT_H
#define SAMEWIRE_DIRECT_H

#include "tables.h"

#define SW_DIRECT_OVERHEAD 70 /* of the tunnel that the client's packets come by, with IPv6 provider addresses */
#define SW_TCP_OPTIONS 10     /* looked through for the MSS */

/* A first packet is for this port of the switch, at the endpoint's own address and port. */
SW_INLINE void sw_aim_at(struct sw_packet *p, const struct sw_portmap *map)
{
	sw_copy_address(&p->out.destination, &map->address);
	p->out.destination_port = map->internal_port;
	p->out_scope = map->scope;
	p->forward.fate = SW_TO_PORT;
	p->forward.target = map->port;
	p->needs_flow = 1;
}

SW_INLINE int sw_is_behind_tunnel(__u16 scope, __u8 family, const struct sw_addr *address)
{
	const struct sw_route *route = sw_find_route(scope, family, address);

	return route && route->kind == SW_ROUTE_TUNNEL;
}

/*
 * Whether the client is where the backend is: the backend itself, its node, or a pod behind that node's address. The
 * answer would not leave that node, and so not meet what is to undo the translation; and what is sent there would meet
 * the flow of its own first way, and go round. Or one whose address is behind a tunnel of the backend's network,
 * wherever: the answer would come by that, and the client waits for it on the underlay.
 */
SW_INLINE int sw_is_from_hop(const struct sw_packet *p, const struct sw_backend *backend)
{
	const struct sw_nexthop *hop = sw_find_nexthop(backend->direct);

	if (sw_same_address(&backend->address, &p->first.source))
		return 1;
	if (hop && hop->family == p->family && sw_same_address(&hop->address, &p->first.source))
		return 1;
	return sw_is_behind_tunnel(backend->scope, p->family, &p->first.source);
}

/* Whether the chosen backend is to get the packets as they are; then the way to it is known. */
SW_INLINE void sw_choose_direct(struct sw_packet *p, const struct sw_backend *backend, __u16 flags)
{
	int preserve = p->kept ? p->kept_direct : flags & SW_SERVICE_PRESERVE;
	struct sw_endpoint *endpoint;

	if (!preserve && !(flags & SW_SERVICE_DSR && p->first_arrival == SW_FROM_UPLINK))
		return;
	endpoint = sw_find_endpoint(backend->scope, p->family, &backend->address);
	if (endpoint && endpoint->port) {
		if (!preserve)
			return;
		p->forward.fate = SW_TO_PORT;
		p->forward.target = endpoint->port;
		p->out_scope = backend->scope;
	} else {
		if (!backend->direct || (!preserve && sw_is_from_hop(p, backend)))
			return;
		p->forward.fate = SW_TO_TUNNEL;
		p->forward.target = backend->direct;
	}
	if (p->first_arrival == SW_FROM_UPLINK && (p->forward.fate == SW_TO_TUNNEL || p->out_scope != SW_SCOPE_UPLINK))
		p->forward.flags |= SW_DECREMENT;
	p->is_direct = 1;
}

/*
 * PreserveDIP: whether the answers would go through the tunnel to the client's node, and it waits for them on the
 * underlay. They have to come back here, then, as they do from any backend.
 */
SW_INLINE int sw_answers_elsewhere(struct sw_packet *p)
{
	if (p->first_arrival != SW_FROM_UPLINK || p->forward.fate != SW_TO_TUNNEL ||
	    !sw_is_behind_tunnel(p->backend_scope, p->family, &p->first.source))
		return 0;
	p->out_scope = p->backend_scope;
	return 1;
}

/* LB at the endpoint's node: VIP -> own address. Returns whether it is one of these packets. */
SW_INLINE int sw_receive_direct(struct sw_packet *p)
{
	struct sw_direct_key key = {
		.port = p->first.destination_port,
		.protocol = p->protocol,
		.family = p->family,
	};
	struct sw_portmap *target;

	if (p->first_arrival != SW_FROM_TUNNEL || !sw_has_ports(p->protocol))
		return 0;
	sw_copy_mac(key.mac, p->inner_mac);
	sw_copy_address(&key.address, &p->first.destination);
	target = bpf_map_lookup_elem(&sw_direct, &key);
	if (!target) {
		__builtin_memset(&key.address, 0, sizeof(key.address));
		target = bpf_map_lookup_elem(&sw_direct, &key);
	}
	if (!target)
		return 0;
	sw_aim_at(p, target);
	p->is_direct = 1;
	sw_step(p, SW_LAYER_LB, SW_STEP_REWRITE, SW_CHOICE_DIRECT, 0, target->port);
	return 1;
}

/* A SYN-ACK tells the client what fits: its own packets come by the tunnel, these do not. Returns 0 or a reason. */
SW_COLD static __noinline int sw_clamp_mss(struct __sk_buff *skb, struct sw_packet *p, __u32 mtu)
{
	__u32 largest = mtu - SW_DIRECT_OVERHEAD - (p->family == 4 ? 40 : 60);
	__u32 at = p->l4_offset + sizeof(struct tcphdr);
	__u32 end = p->payload_offset;
	__u8 option[4];
	__be16 clamped;
	int i;

	for (i = 0; i < SW_TCP_OPTIONS; i++) {
		if (at + 4 > end || bpf_skb_load_bytes(skb, at, option, 4) || !option[0])
			return 0;
		if (option[0] == 1) {
			at++;
			continue;
		}
		if (option[0] != 2) {
			if (option[1] < 2)
				return 0;
			at += option[1];
			continue;
		}
		if (((__u32)option[2] << 8 | option[3]) <= largest)
			return 0;
		clamped = bpf_htons(largest);
		/* The field may stand at an odd offset: the sum takes bytes in pairs from the header's start. */
		if ((at - p->l4_offset) & 1)
			return 0;
		return bpf_l4_csum_replace(skb, p->l4_offset + 16, *(__be16 *)(option + 2), clamped, 2) ||
				       bpf_skb_store_bytes(skb, at + 2, &clamped, 2, 0) ?
			       SW_REASON_INTERNAL :
			       0;
	}
	return 0;
}

#endif /* SAMEWIRE_DIRECT_H */
