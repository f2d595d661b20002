/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * rewrite.h - header transpositions: addresses, ports, ICMP identifiers, TTL, with checksums.
 *
 * L4 checksums go through the helper, which knows what CHECKSUM_PARTIAL and CHECKSUM_COMPLETE want. All else is written
 * straight into the headers, which are linear: each helper on the way costs a packet some 35 ns, each
 * function of ours some 25.
 */
#ifndef SAMEWIRE_REWRITE_H
#define SAMEWIRE_REWRITE_H

#include "account.h"
#include "sctp.h"

#define SW_CSUM_MANGLED_0 0xffff /* a UDP checksum that is 0; 0 says that there is none */
#define SW_CSUM_IPV6_FLAG (1ULL << 7) /* BPF_F_IPV6, kernels >= 6.16 */

/* Offset of the L4 checksum in the packet, 0 if the protocol has none that covers ports or addresses. */
SW_INLINE __u32 sw_checksum_offset(const struct sw_packet *p)
{
	if (p->fragment == SW_FRAGMENT_LATER)
		return 0;
	switch (p->protocol) {
	case IPPROTO_TCP:
		return p->l4_offset + 16;
	case IPPROTO_UDP:
		return p->l4_offset + 6;
	case IPPROTO_ICMP:
		return p->family == 4 ? p->l4_offset + 2 : 0;
	case IPPROTO_ICMPV6:
		return p->family == 6 ? p->l4_offset + 2 : 0;
	default:
		return 0;
	}
}

SW_INLINE __u64 sw_checksum_flags(const struct sw_packet *p)
{
	return p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

/* csum_replace4() of include/net/checksum.h. */
SW_INLINE void sw_sum_replace(__sum16 *sum, __be32 from, __be32 to)
{
	__u64 total = (__u64)(__u32)~(__u32)*sum + (__u32)~from + to;

	total = (total & 0xffffffff) + (total >> 32);
	total = (total & 0xffffffff) + (total >> 32);
	total = (total & 0xffff) + (total >> 16);
	total = (total & 0xffff) + (total >> 16);
	*sum = ~total;
}

/* Replaces one address. is_source: which one. Returns 0 or a reason. */
static __noinline int sw_rewrite_address(struct __sk_buff *skb, struct sw_packet *p, const struct sw_addr *from,
					 const struct sw_addr *to, int is_source)
{
	__u32 checksum = sw_checksum_offset(p);
	struct ipv6hdr *header;
	__s64 difference;
	int covered = 0;

	if (p->family == 4) {
		__be32 old = *(__be32 *)from->b;
		__be32 new = *(__be32 *)to->b;
		struct iphdr *ip;

		if (old == new)
			return 0;
		if (checksum && p->protocol != IPPROTO_ICMP &&
		    bpf_l4_csum_replace(skb, checksum, old, new, BPF_F_PSEUDO_HDR | sw_checksum_flags(p) | 4))
			return SW_REASON_INTERNAL;
		ip = (void *)(long)skb->data + SW_L3;
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return SW_REASON_INTERNAL;
		if (is_source)
			ip->saddr = new;
		else
			ip->daddr = new;
		sw_sum_replace(&ip->check, old, new);
		return 0;
	}

	difference = bpf_csum_diff((__be32 *)from->b, 16, (__be32 *)to->b, 16, 0);
	if (difference < 0)
		return SW_REASON_INTERNAL;
	if (checksum) {
		struct sw_config *config = sw_config_here();
		__u64 flags = BPF_F_PSEUDO_HDR | sw_checksum_flags(p);

		covered = config && config->flags & SW_CONFIG_CSUM_IPV6;
		if (covered)
			flags |= SW_CSUM_IPV6_FLAG;
		if (bpf_l4_csum_replace(skb, checksum, 0, difference, flags))
			return SW_REASON_INTERNAL;
	}
	/* The NIC's sum of all: no other field makes up for the address, or an old helper has counted on the IPv4 header's. */
	if (!covered)
		bpf_csum_update(skb, difference);
	header = (void *)(long)skb->data + SW_L3;
	if ((void *)(header + 1) > (void *)(long)skb->data_end)
		return SW_REASON_INTERNAL;
	if (is_source)
		__builtin_memcpy(&header->saddr, to->b, 16);
	else
		__builtin_memcpy(&header->daddr, to->b, 16);
	return 0;
}

/* Replaces one port, or the ICMP identifier. Protocols without ports, and later fragments, have nothing to replace. */
static __noinline int sw_rewrite_port(struct __sk_buff *skb, struct sw_packet *p, __be16 from, __be16 to,
				      int is_source)
{
	__u32 checksum = sw_checksum_offset(p);
	__u32 offset = p->l4_offset + (is_source ? 0 : 2);
	__be16 *place;

	if (from == to)
		return 0;
	if (p->protocol == IPPROTO_SCTP && p->fragment != SW_FRAGMENT_LATER)
		return sw_rewrite_sctp_port(skb, p, from, to, is_source);
	if (!checksum)
		return 0;
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		offset = p->l4_offset + 4;
	if (offset > 255 || bpf_l4_csum_replace(skb, checksum, from, to, sw_checksum_flags(p) | 2))
		return SW_REASON_INTERNAL;
	place = (void *)(long)skb->data + offset;
	if ((void *)(place + 1) > (void *)(long)skb->data_end)
		return SW_REASON_INTERNAL;
	*place = to;
	return 0;
}

/*
 * Datagrams of two pods that now have one source address must not be put together by who gets their fragments: the
 * identification is moved by the new source port, which no two connections to there share.
 */
static __noinline int sw_rewrite_fragment_id(struct __sk_buff *skb, struct sw_packet *p, __be16 port)
{
	if (p->family == 4) {
		__be16 old = p->fragment_id;
		__be16 new = bpf_htons(bpf_ntohs(old) + bpf_ntohs(port));

		return bpf_l3_csum_replace(skb, SW_L3 + 10, old, new, 2) ||
				       bpf_skb_store_bytes(skb, SW_L3 + 4, &new, 2, 0) ?
			       SW_REASON_INTERNAL :
			       0;
	} else {
		__be32 new = bpf_htonl(bpf_ntohl(p->fragment_id) + bpf_ntohs(port));

		return bpf_skb_store_bytes(skb, p->fragment_offset + 4, &new, 4, BPF_F_RECOMPUTE_CSUM) ? SW_REASON_INTERNAL :
												 0;
	}
}

/* Applies the address and port part of an action to the packet in hand. Returns 0 or a reason. Global: verified once. */
SW_COLD __noinline int sw_rewrite(struct __sk_buff *skb, struct sw_packet *p, const struct sw_action *action)
{
	int reason = 0;

	if (!p || !action)
		return SW_REASON_INTERNAL;
	if (action->flags & SW_REWRITE_SOURCE) {
		reason = sw_rewrite_address(skb, p, &p->tuple.source, &action->source, 1);
		reason = reason ?: sw_rewrite_port(skb, p, p->tuple.source_port, action->source_port, 1);
		if (!reason && p->fragment)
			reason = sw_rewrite_fragment_id(skb, p, action->source_port);
	}
	if (!reason && action->flags & SW_REWRITE_DESTINATION) {
		reason = sw_rewrite_address(skb, p, &p->tuple.destination, &action->destination, 0);
		reason = reason ?: sw_rewrite_port(skb, p, p->tuple.destination_port, action->destination_port, 0);
	}
	return reason;
}

/*
 * One end, address and port, of a whole TCP or UDP packet over IPv4. Calls are what rewriting costs, so there is one.
 *
 * The helper alone knows whether the field holds the sum of all or, with CHECKSUM_PARTIAL, that of the addresses, which
 * ports do not change. Which it was shows in what it has done: from the sum of all it takes what the other gains.
 */
SW_INLINE int sw_rewrite_end4(struct __sk_buff *skb, struct sw_packet *p, __be32 from, __be16 from_port, __be32 to,
			      __be16 to_port, int is_source)
{
	__u32 l4 = p->l4_offset, field = p->protocol == IPPROTO_TCP ? 16 : 6;
	__u64 flags = sw_checksum_flags(p);
	__sum16 *sum, before, of_all;
	struct iphdr *ip;
	__be16 *port;

	asm volatile("" : "+r"(l4)); /* what is bounded is what is used: 6.1's verifier does not see that they are one */
	l4 &= 127;		     /* an IPv4 header ends before that */
	sum = (void *)(long)skb->data + l4 + field;
	if ((void *)(sum + 1) > (void *)(long)skb->data_end)
		return SW_REASON_INTERNAL;
	before = of_all = *sum;
	if (from != to) {
		sw_sum_replace(&of_all, from, to);
		if (!of_all && flags)
			of_all = SW_CSUM_MANGLED_0;
		if (bpf_l4_csum_replace(skb, l4 + field, from, to, BPF_F_PSEUDO_HDR | flags | 4))
			return SW_REASON_INTERNAL;
	}
	if (before == of_all && from_port != to_port && /* nothing shows */
	    bpf_l4_csum_replace(skb, l4 + field, from_port, to_port, flags | 2))
		return SW_REASON_INTERNAL;

	ip = (void *)(long)skb->data + SW_L3;
	port = (void *)(long)skb->data + l4 + (is_source ? 0 : 2);
	sum = (void *)(long)skb->data + l4 + field;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || (void *)(sum + 1) > (void *)(long)skb->data_end ||
	    (void *)(port + 1) > (void *)(long)skb->data_end)
		return SW_REASON_INTERNAL;
	if (is_source)
		ip->saddr = to;
	else
		ip->daddr = to;
	if (from != to)
		sw_sum_replace(&ip->check, from, to);
	if (from_port == to_port)
		return 0;
	*port = to_port;
	if (before != of_all && *sum == of_all) {
		sw_sum_replace(sum, from_port, to_port);
		if (!*sum && flags)
			*sum = SW_CSUM_MANGLED_0;
	}
	return 0;
}

/* The same as sw_rewrite(), where it is called for every packet: no call for what nearly all of them are. */
SW_INLINE int sw_rewrite_inline(struct __sk_buff *skb, struct sw_packet *p, const struct sw_action *action)
{
	const struct sw_tuple *t = &p->tuple;
	int reason = 0;

	if (p->family != 4 || p->fragment || (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP))
		return sw_rewrite(skb, p, action);
	if (action->flags & SW_REWRITE_SOURCE)
		reason = sw_rewrite_end4(skb, p, *(__be32 *)t->source.b, t->source_port, *(__be32 *)action->source.b,
					 action->source_port, 1);
	if (!reason && action->flags & SW_REWRITE_DESTINATION)
		reason = sw_rewrite_end4(skb, p, *(__be32 *)t->destination.b, t->destination_port,
					 *(__be32 *)action->destination.b, action->destination_port, 0);
	return reason;
}

SW_INLINE int sw_decrement_ttl(struct __sk_buff *skb, struct sw_packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (p->family == 4) {
		struct iphdr *ip = data + SW_L3;
		__u32 check;

		if ((void *)(ip + 1) > end)
			return SW_REASON_INTERNAL;
		check = ip->check; /* RFC 1624, as ip_decrease_ttl() */
		check += bpf_htons(0x0100);
		ip->check = check + (check >= 0xffff);
		ip->ttl--;
	} else {
		struct ipv6hdr *ip = data + SW_L3;

		if ((void *)(ip + 1) > end)
			return SW_REASON_INTERNAL;
		ip->hop_limit--;
		/* No header checksum makes up for it in a NIC's sum of all. What is sent here has none. */
		if (p->arrival == SW_FROM_UPLINK || p->arrival == SW_FROM_TUNNEL)
			bpf_csum_update(skb, ~(__u32)bpf_htons(1));
	}
	return 0;
}

/* which: 0 destination, 6 source. */
SW_INLINE int sw_set_mac(struct __sk_buff *skb, int which, const __u8 *mac)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u8 *eth = data;

	if ((void *)(eth + ETH_HLEN) > end)
		return SW_REASON_INTERNAL;
	sw_copy_mac(eth + which, mac);
	return 0;
}

SW_INLINE int sw_set_macs(struct __sk_buff *skb, const __u8 *destination, const __u8 *source)
{
	return sw_set_mac(skb, 0, destination) ?: sw_set_mac(skb, 6, source);
}

#endif /* SAMEWIRE_REWRITE_H */
