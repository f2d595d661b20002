/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * neighbour.h - ARP and neighbour discovery, answered from the tables. Nothing is flooded.
 *
 * A pod asks: an endpoint's address is answered with that endpoint's MAC, one in a prefix of sw_neighbours with what
 * stands there, everything else that has a route with the gateway MAC, so that the switch sees the packets that follow.
 * The wire asks: addresses of L2Bridge pods are answered with the uplink's MAC (one MAC a node upstream) or the
 * network's own, of Transparent pods with their own, those of sw_neighbours as above. What a Transparent pod asks the
 * wire, and the wire's answer, pass as they are. What any pod in a VLAN asks passes, too: with the tag, and with the MAC
 * that the pod has on the wire.
 */
#ifndef SAMEWIRE_NEIGHBOUR_H
#define SAMEWIRE_NEIGHBOUR_H

#include "deliver.h"

struct sw_arp {
	struct arphdr header;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

struct sw_neighbour_message {
	struct icmp6hdr icmp;
	__u8 target[16];
	__u8 option_type;
	__u8 option_length; /* in units of 8 bytes */
	__u8 option_mac[6];
} __attribute__((packed));

#define SW_ASKS_WIRE (SW_PORT_TRANSPARENT | SW_PORT_TAGGED) /* ports whose pods look for their neighbours themselves */

#define SW_ND_ROUTER_SOLICITATION 133
#define SW_ND_SOLICITATION 135
#define SW_ND_ADVERTISEMENT 136
#define SW_ND_OPTION_SOURCE 1
#define SW_ND_OPTION_TARGET 2
#define SW_ND_LENGTH 32 /* with one link-layer address option */

/*
 * Answers from sw_neighbours. Not who announces an address, or asks whether it is free: it is about to be theirs. Nor
 * for link-local addresses: whose they are, the node's own among them, the tables do not say. on_wire: who asks is
 * there, where a prefix with all of its machines is their own. Returns 1 and fills mac and p->answers, or 0.
 */
static __noinline int sw_mac_by_policy(struct sw_packet *p, __u8 *mac, int on_wire)
{
	struct sw_neighbour_entry *entry;

	if (sw_zero_address(&p->tuple.source) || sw_same_address(&p->tuple.source, &p->out.destination))
		return 0;
	if (p->family == 6 && sw_is_link_local(&p->out.destination))
		return 0;
	entry = sw_find_neighbour(p->scope, p->family, &p->out.destination);
	if (!entry || (on_wire && entry->flags & SW_NEIGHBOUR_PODS))
		return 0;
	sw_copy_mac(mac, entry->mac);
	sw_copy_address(&p->answers, &entry->sender);
	return 1;
}

/* The MAC to answer a pod's question about p->out.destination with. Returns 1 and fills mac and p->answers, or 0. */
SW_INLINE int sw_mac_for_pod(struct sw_packet *p, const struct sw_port *port, __u8 *mac)
{
	struct sw_endpoint *endpoint = sw_find_endpoint(p->scope, p->family, &p->out.destination);
	const struct sw_addr *gateway = sw_side6(p) ? &port->gateway[1] : &port->gateway[0];
	struct sw_route *route;

	sw_copy_address(&p->answers, &p->out.destination);
	if (endpoint) {
		sw_copy_mac(mac, endpoint->mac);
		return 1;
	}
	if (sw_mac_by_policy(p, mac, 0))
		return 1;
	if (!sw_same_address(gateway, &p->out.destination)) {
		route = sw_find_way(port->route_set, p->scope, p->family, &p->out.destination);
		if (!route || route->kind == SW_ROUTE_LOCAL || route->kind == SW_ROUTE_BLACKHOLE)
			return 0;
	}
	sw_copy_mac(mac, port->gateway_mac);
	return 1;
}

/* The MAC to answer the wire with: for pods here, and for what a policy says that is not the node's own. */
SW_INLINE int sw_mac_for_wire(struct sw_packet *p, __u8 *mac)
{
	struct sw_endpoint *endpoint = sw_find_endpoint(p->scope, p->family, &p->out.destination);
	struct sw_port *port;

	sw_copy_address(&p->answers, &p->out.destination);
	if (!endpoint)
		return !sw_is_host_address(p->scope, p->family, &p->out.destination) && sw_mac_by_policy(p, mac, 1);
	port = endpoint->port ? sw_find_port(endpoint->port) : 0;
	return port && sw_mac_on_wire(endpoint->port, port, mac);
}

SW_INLINE int sw_answer_out(struct __sk_buff *skb, struct sw_packet *p)
{
	sw_count(SW_COUNTER_ANSWERED_ARP);
#ifdef TRACE
	return TC_ACT_OK;
#else
	skb->mark = SW_MARK;
	return bpf_redirect(skb->ifindex, 0);
#endif
}

/* An answer from the wire to p->out.destination: a pod's that has asked, or the node's own. */
SW_INLINE int sw_answer_in(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_endpoint *endpoint = sw_find_endpoint(p->scope, p->family, &p->out.destination);
	struct sw_port *port = endpoint && endpoint->port ? sw_find_port(endpoint->port) : 0;

	if (!port || !(port->flags & SW_ASKS_WIRE))
		return SW_PASS;
	return sw_to_port(skb, p, endpoint->port, port);
}

/* Where a pod that asks the wire itself is to ask for p->out.destination: beyond this node. 0: we answer. */
SW_INLINE struct sw_nexthop *sw_wire_to_ask(struct sw_packet *p, const struct sw_port *port, const __u8 *mac)
{
	struct sw_route *route;

	if (!(port->flags & SW_ASKS_WIRE) || !sw_same_mac(mac, port->gateway_mac))
		return 0;
	route = sw_find_way(port->route_set, p->scope, p->family, &p->out.destination);
	return route && route->kind == SW_ROUTE_UPLINK ? sw_find_nexthop(route->nexthop) : 0;
}

/* Whether an address is free is asked by who is about to take it: on the wire others would give it up. */
SW_INLINE int sw_claims_address(const struct sw_packet *p, const struct sw_port *port)
{
	return !(port->flags & SW_PORT_NO_GUARD) && sw_zero_address(&p->tuple.source);
}

/* An ARP request to the wire, from the MAC that the pod has there: the answer must come to this node. */
SW_INLINE int sw_ask_arp(struct __sk_buff *skb, struct sw_packet *p, const struct sw_port *port,
			 const struct sw_nexthop *hop)
{
	void *data = (void *)(long)skb->data;
	struct sw_arp *arp = data + SW_L3;
	__u8 mac[8] __attribute__((aligned(8))) = {};

	if ((void *)(arp + 1) > (void *)(long)skb->data_end || !sw_mac_on_wire(p->port_id, port, mac))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
	sw_copy_mac(arp->sender_mac, mac);
	sw_copy_mac((__u8 *)data + 6, mac);
	return sw_put_on_wire(skb, p, hop->ifindex, hop->vni);
}

/* port: the pod that asks, or 0 for the wire. */
SW_COLD static __noinline int sw_arp(struct __sk_buff *skb, struct sw_packet *p, const struct sw_port *port)
{
	__u8 mac[8] __attribute__((aligned(8))) = {};
	__u32 linear = skb->data_end - skb->data;
	struct sw_nexthop *hop;
	__be32 sender, target;
	struct sw_arp *arp;
	void *data, *end;

	/* Not parsed: a drop must not be told with the protocol and the ports of the packet before. */
	p->family = 4;
	p->protocol = 0;
	p->tuple.source_port = 0;
	p->tuple.destination_port = 0;
	sw_set_ipv4(&p->tuple.source, 0);
	sw_set_ipv4(&p->tuple.destination, 0);
	if (linear < SW_L3 + sizeof(*arp)) /* some NICs' drivers leave in pages all behind the Ethernet header */
		bpf_skb_pull_data(skb, SW_L3 + sizeof(*arp));
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	arp = data + SW_L3;
	if ((void *)(arp + 1) > end)
		return port ? sw_drop(p, SW_LAYER_PARSE, SW_REASON_MALFORMED) : SW_PASS;
	if (arp->header.ar_hrd != bpf_htons(ARPHRD_ETHER) || arp->header.ar_pro != bpf_htons(ETH_P_IP))
		return port ? sw_drop(p, SW_LAYER_PARSE, SW_REASON_NOT_IP) : SW_PASS;
	sender = *(__be32 *)arp->sender_ip;
	target = *(__be32 *)arp->target_ip;
	sw_set_ipv4(&p->tuple.source, sender);
	sw_set_ipv4(&p->tuple.destination, target);
	sw_set_ipv4(&p->out.destination, target);
	if (port && !(port->flags & SW_PORT_NO_GUARD)) {
		if (!sw_same_mac((__u8 *)data + 6, port->mac))
			return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_MAC);
		/* An ARP probe (RFC 5227) has no sender address. */
		if (!sw_same_mac(arp->sender_mac, port->mac) ||
		    (sender && sender != *(__be32 *)port->address[0].b))
			return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_ARP);
		if (target == *(__be32 *)port->address[0].b)
			return TC_ACT_SHOT; /* announcing or probing its own address: nobody needs to know */
	}
	if (arp->header.ar_op != bpf_htons(ARPOP_REQUEST))
		return port ? TC_ACT_SHOT : sw_answer_in(skb, p); /* nothing is asked on ports */
	if (port ? !sw_mac_for_pod(p, port, mac) : !sw_mac_for_wire(p, mac))
		return port ? sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT) : SW_PASS;
	hop = port ? sw_wire_to_ask(p, port, mac) : 0;
	if (hop && sw_claims_address(p, port))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_ARP);
	if (hop)
		return sw_ask_arp(skb, p, port, hop);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	arp = data + SW_L3;
	if ((void *)(arp + 1) > end)
		return TC_ACT_SHOT;
	sw_copy_mac((__u8 *)data, arp->sender_mac);
	sw_copy_mac((__u8 *)data + 6, mac);
	arp->header.ar_op = bpf_htons(ARPOP_REPLY);
	sw_copy_mac(arp->target_mac, arp->sender_mac);
	*(__be32 *)arp->target_ip = sender;
	sw_copy_mac(arp->sender_mac, mac);
	*(__be32 *)arp->sender_ip = target;
	return sw_answer_out(skb, p);
}

/* GUARD for neighbour discovery: own addresses and own MAC only. */
SW_INLINE int sw_nd_is_own(struct sw_packet *p, const struct sw_port *port, const struct sw_neighbour_message *nd,
			   int has_option)
{
	const struct sw_addr *source = &p->tuple.source;
	const struct sw_addr *target = (const struct sw_addr *)nd->target;

	if (!sw_zero_address(source) && !sw_is_link_local(source) && !sw_same_address(source, &port->address[1]))
		return 0;
	if (has_option && !sw_same_mac(nd->option_mac, port->mac))
		return 0;
	if (p->icmp_type == SW_ND_ADVERTISEMENT && !sw_is_link_local(target) &&
	    !sw_same_address(target, &port->address[1]))
		return 0;
	return 1;
}

#ifndef TRACE
/* Turns the solicitation in hand into an advertisement. */
static __noinline int sw_advertise(struct __sk_buff *skb, struct sw_packet *p, const __u8 *mac, int router)
{
	struct sw_neighbour_message *nd;
	struct ipv6hdr *ip;
	void *data, *end;
	__be32 pseudo[2];
	__s64 sum;

	if (bpf_skb_change_tail(skb, SW_L3 + sizeof(*ip) + SW_ND_LENGTH, 0))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	ip = data + SW_L3;
	nd = (void *)(ip + 1);
	if ((void *)(nd + 1) > end)
		return -1;
	sw_copy_mac((__u8 *)data, (__u8 *)data + 6);
	sw_copy_mac((__u8 *)data + 6, mac);
	ip->payload_len = bpf_htons(SW_ND_LENGTH);
	ip->hop_limit = 255;
	__builtin_memcpy(&ip->saddr, p->answers.b, 16);
	if (sw_zero_address(&p->tuple.source)) { /* duplicate address detection: tell everybody */
		__be32 all_nodes[4] = { bpf_htonl(0xff020000), 0, 0, bpf_htonl(1) };
		__u8 multicast[8] __attribute__((aligned(8))) = { 0x33, 0x33, 0, 0, 0, 1 };

		__builtin_memcpy(&ip->daddr, all_nodes, 16);
		sw_copy_mac((__u8 *)data, multicast);
	} else {
		__builtin_memcpy(&ip->daddr, p->tuple.source.b, 16);
	}
	__builtin_memset(&nd->icmp, 0, sizeof(nd->icmp));
	nd->icmp.icmp6_type = SW_ND_ADVERTISEMENT;
	nd->icmp.icmp6_router = !!router;
	nd->icmp.icmp6_solicited = !sw_zero_address(&p->tuple.source);
	nd->icmp.icmp6_override = 1;
	nd->option_type = SW_ND_OPTION_TARGET;
	nd->option_length = 1;
	sw_copy_mac(nd->option_mac, mac);

	pseudo[0] = bpf_htonl(SW_ND_LENGTH);
	pseudo[1] = bpf_htonl(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&ip->saddr, 32, sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)nd, SW_ND_LENGTH, sum);
	nd->icmp.icmp6_cksum = sw_fold(sum);
	return 0;
}
#endif

/*
 * A solicitation to the wire, from the MAC that the pod has there; and from its own address where it has used a
 * link-local one, which the tables do not know: the answer would not find the pod, and it might be a router's.
 */
static __noinline int sw_ask_neighbour(struct __sk_buff *skb, struct sw_packet *p, const struct sw_port *port,
				       const struct sw_nexthop *hop)
{
	struct {
		__be32 source[4];
		__u8 mac[8];
	} before = {}, after = {}; /* of what the checksum covers */
	void *data = (void *)(long)skb->data;
	struct ipv6hdr *ip = data + SW_L3;
	struct sw_neighbour_message *nd = (void *)(ip + 1);
	__s64 sum;

	/* GUARD has looked at the first option. Another one might name another MAC. */
	if (!(port->flags & SW_PORT_NO_GUARD) &&
	    ((void *)(ip + 1) > (void *)(long)skb->data_end || bpf_ntohs(ip->payload_len) > SW_ND_LENGTH))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_ARP);
	if (port->flags & SW_PORT_TRANSPARENT &&
	    (port->flags & SW_PORT_NO_GUARD || !sw_is_link_local(&p->tuple.source)))
		return sw_put_on_wire(skb, p, hop->ifindex, hop->vni);
	if (sw_zero_address(&port->address[1]) || (void *)(nd + 1) > (void *)(long)skb->data_end || nd->option_length != 1 ||
	    nd->option_type != SW_ND_OPTION_SOURCE || !sw_mac_on_wire(p->port_id, port, after.mac))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_MULTICAST);
	__builtin_memcpy(before.source, &ip->saddr, 16);
	sw_copy_mac(before.mac, nd->option_mac);
	__builtin_memcpy(after.source, port->address[1].b, 16);
	sum = bpf_csum_diff((__be32 *)&before, 24, (__be32 *)&after, 24, (__u16)~nd->icmp.icmp6_cksum);
	nd->icmp.icmp6_cksum = sw_fold(sum);
	__builtin_memcpy(&ip->saddr, after.source, 16);
	sw_copy_mac(nd->option_mac, after.mac);
	sw_copy_mac((__u8 *)data + 6, after.mac);
	return sw_put_on_wire(skb, p, hop->ifindex, hop->vni);
}

/* ICMPv6 that is about the link. port: the pod that sent it, or 0 for the wire. */
SW_COLD static __noinline int sw_neighbour(struct __sk_buff *skb, struct sw_packet *p, const struct sw_port *port)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct sw_neighbour_message *nd = data + SW_L3 + sizeof(struct ipv6hdr);
	__u8 mac[8] __attribute__((aligned(8))) = {};
	struct sw_nexthop *hop;
	int has_option;

	if (p->l4_offset != SW_L3 + sizeof(struct ipv6hdr) || (void *)(nd->target + 16) > end)
		return port ? sw_drop(p, SW_LAYER_L2, SW_REASON_MULTICAST) : SW_PASS; /* MLD, router solicitation */
	has_option = (void *)(nd + 1) <= end && nd->option_length == 1 &&
		     (nd->option_type == SW_ND_OPTION_SOURCE || nd->option_type == SW_ND_OPTION_TARGET);
	if (p->icmp_type != SW_ND_SOLICITATION && p->icmp_type != SW_ND_ADVERTISEMENT)
		return port ? sw_drop(p, SW_LAYER_L2, SW_REASON_MULTICAST) : SW_PASS;
	if (has_option && (void *)(nd + 1) > end) /* for the verifier, which has lost the bound */
		return TC_ACT_SHOT;
	if (port && !(port->flags & SW_PORT_NO_GUARD) && !sw_nd_is_own(p, port, nd, has_option))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_ARP);
	if (p->icmp_type != SW_ND_SOLICITATION) {
		sw_copy_address(&p->out.destination, &p->tuple.destination);
		return port ? TC_ACT_SHOT : sw_answer_in(skb, p);
	}
	__builtin_memcpy(p->out.destination.b, nd->target, 16);
	/* Its own addresses, or a neighbour's link-local one: there are none on this link, unless it is the wire's. */
	if (port && (sw_same_address(&p->out.destination, &port->address[1]) ||
		     (sw_is_link_local(&p->out.destination) &&
		      (!(port->flags & SW_ASKS_WIRE) || sw_zero_address(&p->tuple.source)))))
		return TC_ACT_SHOT;
	if (port ? !sw_mac_for_pod(p, port, mac) : !sw_mac_for_wire(p, mac))
		return port ? sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT) : SW_PASS;
	hop = port ? sw_wire_to_ask(p, port, mac) : 0;
	if (hop && sw_claims_address(p, port))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_ARP);
	if (hop)
		return sw_ask_neighbour(skb, p, port, hop);
#ifndef TRACE
	if (sw_advertise(skb, p, mac, port && sw_same_mac(mac, port->gateway_mac)))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
#endif
	return sw_answer_out(skb, p);
}

#endif /* SAMEWIRE_NEIGHBOUR_H */
