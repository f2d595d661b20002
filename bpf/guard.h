/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * guard.h - GUARD: what an endpoint sends has its own addresses, and goes to one that may be a destination. And what the
 * wire brings is for this machine.
 */
#ifndef SAMEWIRE_GUARD_H
#define SAMEWIRE_GUARD_H

#include "fragment.h"
#include "icmp_error.h"

/*
 * PreserveDIP: an endpoint that has got packets for a VIP answers from it. Later fragments have their first one's ports, an
 * error speaks for what it quotes the other way round.
 */
SW_COLD static __noinline int sw_speaks_for_vip(struct __sk_buff *skb, struct sw_packet *p)
{
	__u8 protocol = p->protocol;
	struct sw_flow *flow;

	if (p->fragment == SW_FRAGMENT_LATER)
		sw_fragment(p);
	sw_copy_tuple(&p->out, &p->tuple);
	if (p->icmp_error) {
		if (!sw_parse_quoted(skb, p, &protocol) || !sw_same_address(&p->first.source, &p->tuple.destination))
			return 0;
		sw_reverse_tuple(&p->out, &p->first);
	}
	p->direction = sw_key_of(&p->key, &p->out, p->scope, p->family, protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	return flow && flow->flags & SW_FLOW_DIRECT && flow->port[1] == p->port_id &&
	       p->direction != (flow->flags & SW_FLOW_INITIATOR);
}

/* GUARD: the frame's and the packet's source are the endpoint's own. */
SW_INLINE int sw_guard(struct __sk_buff *skb, struct sw_packet *p, const struct sw_port *port)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (port->flags & SW_PORT_NO_GUARD)
		return SW_GO_ON;
	if (data + ETH_HLEN > end)
		return sw_drop(p, SW_LAYER_PARSE, SW_REASON_MALFORMED);
	if (!sw_same_mac((__u8 *)data + 6, port->mac))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_MAC);
	/* Of a version that the endpoint has no address of, nobody's would be its own. */
	if (!p->neighbour &&
	    (!sw_same_address(&p->tuple.source, sw_side6(p) ? &port->address[1] : &port->address[0]) ||
	     sw_zero_address(&p->tuple.source)) &&
	    !sw_speaks_for_vip(skb, p))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_IP);
	return SW_GO_ON;
}

SW_INLINE int sw_is_multicast(const struct sw_packet *p)
{
	const __u8 *b = p->tuple.destination.b;

	if (p->family == 6)
		return b[0] == 0xff;
	return (b[0] & 0xf0) == 0xe0 || *(const __u32 *)b == 0xffffffff;
}

/* A frame for all, of a packet for one: no router forwards it, and redirect_neigh would drop it without a word. */
SW_INLINE int sw_is_broadcast_frame(struct __sk_buff *skb, const struct sw_port *port)
{
	const __u8 *mac = (void *)(long)skb->data;

	return (void *)(mac + ETH_HLEN) <= (void *)(long)skb->data_end && mac[0] & 1 &&
	       !(port->flags & SW_PORT_TRANSPARENT);
}

/* Loopback, unspecified, or the sender's own address as the destination. */
SW_INLINE int sw_is_martian(const struct sw_packet *p)
{
	const __u8 *b = p->tuple.destination.b;
	const __be32 *word = (const __be32 *)b;

	if (sw_same_address(&p->tuple.source, &p->tuple.destination))
		return 1;
	if (p->family == 6) /* :: and ::1 differ in the last bit */
		return sw_is_link_local(&p->tuple.destination) ||
		       !(word[0] | word[1] | word[2] | (word[3] & bpf_htonl(~1U)));
	return b[0] == 127 || b[0] == 0;
}

/* Whether a destination is the node's own or an endpoint's of this scope. */
SW_COLD static __noinline int sw_has_owner(struct sw_packet *p)
{
	struct sw_route *route = sw_find_route(p->scope, p->family, &p->tuple.destination);

	return route && (route->kind == SW_ROUTE_HOST || route->kind == SW_ROUTE_LOCAL);
}

/*
 * A frame for another machine, which the wire's switch floods and a NIC that takes all frames lets in: a VIP may be there
 * and here. The node and its endpoints may have more MACs than the uplink's.
 */
SW_INLINE int sw_is_anothers(struct __sk_buff *skb, struct sw_packet *p, const struct sw_config *config)
{
	const __u8 *mac = (void *)(long)skb->data;

	if ((void *)(mac + ETH_HLEN) > (void *)(long)skb->data_end || mac[0] & 1)
		return 0;
	return !sw_same_mac(mac, config->uplink_mac) && !sw_has_owner(p);
}

#endif /* SAMEWIRE_GUARD_H */
