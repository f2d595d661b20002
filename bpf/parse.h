/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * parse.h - from a frame to what the switch knows of it.
 */
#ifndef SAMEWIRE_PARSE_H
#define SAMEWIRE_PARSE_H

#include "packet.h"

#define SW_SCTP_HEADER 12

/* Ports (or the ICMP identifier) at l4_offset. Returns 0 or a reason. */
SW_INLINE int sw_parse_l4(struct __sk_buff *skb, struct sw_packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 offset = p->l4_offset;
	__u8 *l4;

	if (offset > 255)
		return SW_REASON_MALFORMED;
	l4 = data + offset;

	switch (p->protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = (void *)l4;
		__u8 flags;

		if ((void *)(tcp + 1) > end)
			return SW_REASON_MALFORMED;
		p->tuple.source_port = tcp->source;
		p->tuple.destination_port = tcp->dest;
		flags = l4[13];
		p->tcp_flags = (flags & 0x12) == 0x02 ? SW_TCP_SYN : (flags & 0x02) ? 0 : SW_TCP_DATA;
		p->tcp_flags |= (flags & 0x01 ? SW_TCP_FIN : 0) | (flags & 0x04 ? SW_TCP_RST : 0);
		p->payload_offset = offset + (l4[12] >> 4) * 4;
		return 0;
	}
	case IPPROTO_UDP:
	case IPPROTO_SCTP: {
		struct udphdr *udp = (void *)l4; /* SCTP has its ports in the same place */

		if ((void *)(udp + 1) > end)
			return SW_REASON_MALFORMED;
		p->tuple.source_port = udp->source;
		p->tuple.destination_port = udp->dest;
		p->payload_offset = offset + (p->protocol == IPPROTO_SCTP ? SW_SCTP_HEADER : sizeof(*udp));
		return 0;
	}
	case IPPROTO_ICMP:
		if (p->family != 4)
			return 0;
		break;
	case IPPROTO_ICMPV6:
		if (p->family != 6)
			return 0;
		break;
	default:
		return 0;
	}

	if ((void *)(l4 + 8) > end)
		return SW_REASON_MALFORMED;
	p->icmp_type = l4[0];
	if (p->family == 4) {
		if (l4[0] == ICMP_ECHO)
			p->tuple.source_port = *(__be16 *)(l4 + 4);
		else if (l4[0] == ICMP_ECHOREPLY)
			p->tuple.destination_port = *(__be16 *)(l4 + 4);
		else if (l4[0] == ICMP_DEST_UNREACH || l4[0] == ICMP_TIME_EXCEEDED || l4[0] == ICMP_PARAMETERPROB)
			p->icmp_error = 1;
	} else {
		if (l4[0] == ICMPV6_ECHO_REQUEST)
			p->tuple.source_port = *(__be16 *)(l4 + 4);
		else if (l4[0] == ICMPV6_ECHO_REPLY)
			p->tuple.destination_port = *(__be16 *)(l4 + 4);
		else if (l4[0] < 128)
			p->icmp_error = 1;
		else if ((l4[0] >= 130 && l4[0] <= 137) || l4[0] == 143)
			p->neighbour = 1;
	}
	return 0;
}

SW_INLINE int sw_parse_ipv4(struct __sk_buff *skb, struct sw_packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + SW_L3;
	__u16 offset;

	if ((void *)(ip + 1) > end || ip->ihl < 5 || ip->version != 4)
		return SW_REASON_MALFORMED;
	p->family = 4;
	p->protocol = ip->protocol;
	p->ttl = ip->ttl;
	sw_note_length(p, bpf_ntohs(ip->tot_len));
	p->l4_offset = SW_L3 + ip->ihl * 4;
	p->payload_offset = p->l4_offset;
	sw_set_ipv4(&p->tuple.source, ip->saddr);
	sw_set_ipv4(&p->tuple.destination, ip->daddr);

	offset = bpf_ntohs(ip->frag_off);
	if (offset & (IP_MF_ | IP_OFFSET_)) {
		p->fragment = offset & IP_OFFSET_ ? SW_FRAGMENT_LATER : SW_FRAGMENT_FIRST;
		p->fragment_id = ip->id;
		if (p->fragment == SW_FRAGMENT_LATER)
			return 0;
	}
	return sw_parse_l4(skb, p);
}

/* Headers between IPv6's and the one of the protocol that the packet is of. */
SW_INLINE int sw_is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT;
}

SW_INLINE int sw_parse_ipv6(struct __sk_buff *skb, struct sw_packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + SW_L3;
	__u32 offset = SW_L3 + sizeof(*ip);
	__u8 next;
	int i;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return SW_REASON_MALFORMED;
	p->family = 6;
	p->ttl = ip->hop_limit;
	sw_note_length(p, sizeof(*ip) + bpf_ntohs(ip->payload_len));
	__builtin_memcpy(p->tuple.source.b, &ip->saddr, 16);
	__builtin_memcpy(p->tuple.destination.b, &ip->daddr, 16);
	next = ip->nexthdr;

	for (i = 0; i < SW_IPV6_EXTENSIONS; i++) {
		__u8 *extension = data + offset;

		if (!sw_is_extension(next))
			break;
		if ((void *)(extension + 8) > end)
			return SW_REASON_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 where = bpf_ntohs(*(__be16 *)(extension + 2));

			if (where & 0xfff9) { /* an atomic fragment is a whole datagram */
				p->fragment = where & 0xfff8 ? SW_FRAGMENT_LATER : SW_FRAGMENT_FIRST;
				p->fragment_id = *(__u32 *)(extension + 4);
				p->fragment_offset = offset;
			}
			next = extension[0];
			offset += 8;
		} else {
			next = extension[0];
			offset += (extension[1] + 1) * 8;
		}
		if (offset > 240)
			return SW_REASON_MALFORMED;
		if (p->fragment == SW_FRAGMENT_LATER)
			break;
	}
	if (i == SW_IPV6_EXTENSIONS)
		return SW_REASON_MALFORMED;
	p->protocol = next;
	p->l4_offset = offset;
	p->payload_offset = offset;
	if (p->fragment == SW_FRAGMENT_LATER)
		return 0;
	/* Ports behind the first fragment's end would be nobody's: those of the datagram would come in the next one. */
	if (p->fragment && offset + 8 > SW_L3 + sizeof(*ip) + bpf_ntohs(ip->payload_len))
		return SW_REASON_MALFORMED;
	return sw_parse_l4(skb, p);
}

/*
 * Bytes of the frame that the parser will look at. No more: the payload of a TCP segment stands in pages, and to pull
 * a byte of it is to copy the head, which the socket still shares.
 */
SW_INLINE __u32 sw_header_bytes(struct __sk_buff *skb, __be16 protocol)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 offset;
	__u8 next;

	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + SW_L3;

		if ((void *)(ip + 1) > end)
			return SW_PULL_BYTES;
		next = ip->protocol;
		offset = SW_L3 + ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = data + SW_L3;

		if ((void *)(ip + 1) > end)
			return SW_PULL_BYTES;
		next = ip->nexthdr;
		offset = SW_L3 + sizeof(*ip);
	}
	if (next == IPPROTO_TCP)
		return offset + sizeof(struct tcphdr);
	return next == IPPROTO_UDP ? offset + sizeof(struct udphdr) : SW_PULL_BYTES;
}

/*
 * Clears the parsed part and parses the frame. Returns 0 or a reason; SW_REASON_NOT_IP for anything but IP. Headers
 * that are not linear (GRO on a real NIC) are pulled once.
 */
SW_INLINE int sw_parse(struct __sk_buff *skb, struct sw_packet *p)
{
	__be16 protocol = skb->protocol;
	__u32 linear = skb->data_end - skb->data;

	p->tuple.source_port = 0;
	p->tuple.destination_port = 0;
	p->tcp_flags = 0;
	p->fragment = 0;
	p->icmp_error = 0;
	p->neighbour = 0;
	p->icmp_type = 0;
	if (linear < SW_PULL_BYTES && linear < skb->len && linear < sw_header_bytes(skb, protocol) &&
	    bpf_skb_pull_data(skb, skb->len < SW_PULL_BYTES ? skb->len : SW_PULL_BYTES))
		return SW_REASON_INTERNAL;
	if (protocol == bpf_htons(ETH_P_IP))
		return sw_parse_ipv4(skb, p);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return sw_parse_ipv6(skb, p);
	return SW_REASON_NOT_IP;
}

#endif /* SAMEWIRE_PARSE_H */
