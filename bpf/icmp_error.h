/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * icmp_error.h - ICMP errors belong to the connection they quote.
 *
 * An error about a packet a->b travels like a packet b->a of the same flow: that direction's transposition is applied
 * to the outer addresses and, mirrored, to the quoted header, so that the initiator finds what it has sent, checksums
 * included. The quoted IPv4 header's own checksum is kept right, so address changes in it cancel out of the ICMP
 * checksum; ports do not.
 */
#ifndef SAMEWIRE_ICMP_ERROR_H
#define SAMEWIRE_ICMP_ERROR_H

#include "connect.h"
#include "parse.h"

/* Offset of a protocol's checksum in its header, 0 if it has none that covers ports. */
SW_INLINE __u32 sw_checksum_place(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	default:
		return 0;
	}
}

/* Where the quoted L4 header starts; 0 if it is not quoted or not something that has a flow. */
SW_COLD static __noinline __u32 sw_parse_quoted(struct __sk_buff *skb, struct sw_packet *p, __u8 *protocol)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 offset = p->l4_offset + 8, place;
	__u8 type;
	__u8 *l4;
	int i;

	if (offset > 255)
		return 0;
	if (p->family == 4) {
		struct iphdr *ip = data + offset;

		if ((void *)(ip + 1) > end || ip->ihl < 5 || ip->frag_off & bpf_htons(IP_OFFSET_))
			return 0;
		sw_set_ipv4(&p->first.source, ip->saddr);
		sw_set_ipv4(&p->first.destination, ip->daddr);
		*protocol = ip->protocol;
		offset += ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = data + offset;

		if ((void *)(ip + 1) > end)
			return 0;
		__builtin_memcpy(p->first.source.b, &ip->saddr, 16);
		__builtin_memcpy(p->first.destination.b, &ip->daddr, 16);
		*protocol = ip->nexthdr;
		offset += sizeof(*ip);
		for (i = 0; i < SW_IPV6_EXTENSIONS && sw_is_extension(*protocol); i++) {
			__u8 *extension = data + offset;
			int fragment = *protocol == IPPROTO_FRAGMENT;

			if (offset > 400 || (void *)(extension + 8) > end ||
			    (fragment && *(__be16 *)(extension + 2) & bpf_htons(0xfff8)))
				return 0;
			*protocol = extension[0];
			offset += fragment ? 8 : (extension[1] + 1) * 8;
		}
	}
	if (offset > 400)
		return 0;
	l4 = data + offset;
	if ((void *)(l4 + 8) > end)
		return 0;
	place = sw_checksum_place(*protocol);
	p->quoted_checksum = place && (void *)(l4 + place + 2) <= end ? offset + place : 0;
	p->first.source_port = 0;
	p->first.destination_port = 0;
	if (sw_has_ports(*protocol)) {
		p->first.source_port = *(__be16 *)l4;
		p->first.destination_port = *(__be16 *)(l4 + 2);
	} else if ((p->family == 4 && *protocol == IPPROTO_ICMP) || (p->family == 6 && *protocol == IPPROTO_ICMPV6)) {
		type = l4[0];
		if (type == ICMP_ECHO || type == ICMPV6_ECHO_REQUEST)
			p->first.source_port = *(__be16 *)(l4 + 4);
		else if (type == ICMP_ECHOREPLY || type == ICMPV6_ECHO_REPLY)
			p->first.destination_port = *(__be16 *)(l4 + 4);
	}
	return offset;
}

/* What the quoted L4 checksum covers has changed. size: 2, 4, or 0 for a difference in to. UDP may have none (0). */
static __noinline int sw_adjust_quoted(struct __sk_buff *skb, struct sw_packet *p, __u32 from, __u32 to, __u64 flags)
{
	__u32 at = p->quoted_checksum;
	__be16 before = 0, after = 0;

	if (!at)
		return 0;
	if (bpf_skb_load_bytes(skb, at, &before, 2) || bpf_l4_csum_replace(skb, at, from, to, flags) ||
	    bpf_skb_load_bytes(skb, at, &after, 2))
		return 1;
	return bpf_l4_csum_replace(skb, p->l4_offset + 2, before, after, 2);
}

/* Replaces one address of the quoted header. where: its offset; flags: of the quoted checksum. */
static __noinline int sw_rewrite_quoted_address(struct __sk_buff *skb, struct sw_packet *p, __u32 where,
						const struct sw_addr *from, const struct sw_addr *to)
{
	__u64 flags = p->quoted_protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (p->family == 4) {
		__be32 old = *(__be32 *)from->b;
		__be32 new = *(__be32 *)to->b;

		if (bpf_l3_csum_replace(skb, p->l4_offset + 8 + 10, old, new, 4) ||
		    bpf_skb_store_bytes(skb, where, &new, 4, 0))
			return 1;
		return p->quoted_protocol == IPPROTO_ICMP ? 0 : sw_adjust_quoted(skb, p, old, new, flags | 4);
	} else {
		__s64 difference = bpf_csum_diff((__be32 *)from->b, 16, (__be32 *)to->b, 16, 0);

		if (difference < 0 || bpf_l4_csum_replace(skb, p->l4_offset + 2, 0, difference, 0) ||
		    bpf_skb_store_bytes(skb, where, to->b, 16, 0))
			return 1;
		return sw_adjust_quoted(skb, p, 0, difference, flags);
	}
}

static __noinline int sw_rewrite_quoted_port(struct __sk_buff *skb, struct sw_packet *p, __u32 where, __be16 from,
					     __be16 to)
{
	__u64 flags = p->quoted_protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 | 2 : 2;

	if (from == to)
		return 0;
	return bpf_l4_csum_replace(skb, p->l4_offset + 2, from, to, 2) || bpf_skb_store_bytes(skb, where, &to, 2, 0) ||
	       sw_adjust_quoted(skb, p, from, to, flags);
}

/* Mirrors p->chosen (of packets destination -> source) into the quoted header source -> destination. */
SW_INLINE int sw_rewrite_quoted(struct __sk_buff *skb, struct sw_packet *p, __u32 l4)
{
	const struct sw_action *action = &p->chosen;
	__u32 l3 = p->l4_offset + 8;
	__u32 source = l3 + (p->family == 4 ? 12 : 8);
	__u32 destination = l3 + (p->family == 4 ? 16 : 24);
	int ports = sw_has_ports(p->quoted_protocol);
	int failed = 0;

	if (action->flags & SW_REWRITE_DESTINATION) {
		failed |= sw_rewrite_quoted_address(skb, p, source, &p->first.source, &action->destination);
		if (p->first.source_port)
			failed |= sw_rewrite_quoted_port(skb, p, ports ? l4 : l4 + 4, p->first.source_port,
							 action->destination_port);
	}
	if (action->flags & SW_REWRITE_SOURCE) {
		failed |= sw_rewrite_quoted_address(skb, p, destination, &p->first.destination, &action->source);
		if (p->first.destination_port)
			failed |= sw_rewrite_quoted_port(skb, p, ports ? l4 + 2 : l4 + 4, p->first.destination_port,
							 action->source_port);
	}
	return failed;
}

/* Translates what is quoted, and leaves in p->chosen what is to be done with the header before it. 0: done. */
SW_INLINE int sw_translate_error(struct __sk_buff *skb, struct sw_packet *p, __u32 l4)
{
	if (sw_rewrite_quoted(skb, p, l4))
		return 1;
	/*
	 * A router in between speaks for itself: only an end's own address (p->out) is translated. But the node sends
	 * nothing under a stranger's address, which may be that of the very router it goes to.
	 */
	if (p->chosen.fate != SW_TO_UPLINK && !sw_same_address(&p->tuple.source, &p->out.source))
		p->chosen.flags &= ~SW_REWRITE_SOURCE;
	p->chosen.source_port = 0;
	p->chosen.destination_port = 0;
	p->tuple.source_port = 0;
	p->tuple.destination_port = 0;
	return 0;
}

/*
 * Whether a flow is as it was decided to the pod in hand, and to the one that it leads to. If not, the next packet has it
 * judged again: until then an error would pass rules that have come since.
 */
SW_INLINE int sw_is_as_decided(const struct sw_packet *p, const struct sw_flow *flow, __u8 side)
{
	const struct sw_port *target;

	if (p->port_generation != (side ? flow->generation[1] : flow->generation[0]))
		return 0;
	if (p->chosen.fate != SW_TO_PORT)
		return 1;
	target = sw_find_port(p->chosen.target);
	return target && sw_generation_of(target) == (side ? flow->generation[0] : flow->generation[1]);
}

/* Returns a verdict, or SW_GO_ON: to be routed like any packet. */
SW_COLD __noinline int sw_icmp_error(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_flow *flow;
	__u8 protocol = 0, direction;
	int is_to_sender;
	__u32 l4;

	if (!p)
		return TC_ACT_SHOT;
	l4 = sw_parse_quoted(skb, p, &protocol);
	if (!l4) /* what comes from the wire is perhaps the node's own */
		return p->arrival == SW_FROM_UPLINK ? SW_GO_ON : sw_drop(p, SW_LAYER_ICMP, SW_REASON_MALFORMED);
	is_to_sender = sw_same_address(&p->tuple.destination, &p->first.source);
	/* A pod is no router: it has something to say only about what came to it, and to whom that came from. */
	if (p->arrival == SW_FROM_POD && !(p->port_flags & SW_PORT_NO_GUARD) &&
	    (!is_to_sender || !sw_same_address(&p->tuple.source, &p->first.destination)))
		return sw_drop(p, SW_LAYER_ICMP, SW_REASON_ICMP_UNRELATED);
	if (!is_to_sender)
		return SW_GO_ON; /* to somebody else: a flow that it quotes does not lead there */
	p->quoted_protocol = protocol;
	sw_reverse_tuple(&p->out, &p->first);
	direction = sw_key_of(&p->key, &p->out, p->scope, p->family, protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (!flow)
		return SW_GO_ON; /* a stateless connection, or one of the node's own */
	if (flow->flags & SW_FLOW_HOST)
		return p->arrival == SW_FROM_UPLINK ? SW_PASS : sw_drop(p, SW_LAYER_ICMP, SW_REASON_ICMP_UNRELATED);
	sw_copy_action(&p->chosen, direction ? &flow->action[1] : &flow->action[0]);
	if (p->chosen.fate == SW_TO_NOWHERE ||
	    (p->arrival == SW_FROM_POD && !sw_is_as_decided(p, flow, direction != (flow->flags & SW_FLOW_INITIATOR))) ||
	    (flow->backend && !bpf_map_lookup_elem(&sw_backends, &flow->backend)))
		return sw_drop(p, SW_LAYER_ICMP, SW_REASON_ICMP_UNRELATED);
	return sw_translate_error(skb, p, l4) ? sw_drop(p, SW_LAYER_ICMP, SW_REASON_INTERNAL) : sw_finish(skb);
}

#ifndef TRACE
/* What the node's own stack says of what an outside client of a service has sent it: it has seen its own address. */
SW_COLD static __noinline int sw_host_error(struct __sk_buff *skb, struct sw_packet *p)
{
	__u8 protocol = 0, direction;
	struct sw_flow *flow;
	__u32 l4;

	l4 = sw_parse_quoted(skb, p, &protocol);
	if (!l4)
		return SW_PASS;
	p->quoted_protocol = protocol;
	sw_reverse_tuple(&p->out, &p->first);
	direction = sw_key_of(&p->key, &p->out, SW_SCOPE_UPLINK, p->family, protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (!flow || direction == (flow->flags & SW_FLOW_INITIATOR))
		return SW_PASS;
	sw_copy_action(&p->chosen, direction ? &flow->action[1] : &flow->action[0]);
	if (p->chosen.fate != SW_TO_UPLINK)
		return SW_PASS;
	return sw_translate_error(skb, p, l4) || sw_rewrite(skb, p, &p->chosen) ?
		       sw_drop(p, SW_LAYER_ICMP, SW_REASON_INTERNAL) :
		       SW_PASS;
}
#endif

#endif /* SAMEWIRE_ICMP_ERROR_H */
