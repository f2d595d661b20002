/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * refuse.h - "nobody is there", said at once: a TCP RST, or ICMP port unreachable for everything else.
 *
 * The frame in hand is cut to its headers and turned round. IP options and extension headers get no RST.
 */
#ifndef SAMEWIRE_REFUSE_H
#define SAMEWIRE_REFUSE_H

#include "icmp_reply.h"

#ifndef TRACE
/* The sum of the pseudo header, not folded. The two addresses stand behind one another. */
SW_INLINE __s64 sw_pseudo_sum(void *addresses, int size, __u32 length)
{
	__be32 rest[2] = { bpf_htonl(length), bpf_htonl(IPPROTO_TCP) };
	__s64 sum = bpf_csum_diff(0, 0, rest, sizeof(rest), 0);

	return bpf_csum_diff(0, 0, addresses, size, sum);
}

/* The header of the answer, in place of the one it answers. */
SW_INLINE void sw_write_reset(struct tcphdr *tcp, __u32 length)
{
	__be32 *words = (__be32 *)tcp;
	__be32 sequence = words[1], acknowledged = words[2];
	__u8 flags = ((__u8 *)tcp)[13];
	__be16 port = tcp->source;

	tcp->source = tcp->dest;
	tcp->dest = port;
	if (flags & 0x10) {
		words[1] = acknowledged;
		words[2] = 0;
		words[3] = bpf_htonl(0x50040000); /* 20 bytes, RST */
	} else {
		length += (flags & 0x02 ? 1 : 0) + (flags & 0x01);
		words[1] = 0;
		words[2] = bpf_htonl(bpf_ntohl(sequence) + length);
		words[3] = bpf_htonl(0x50140000); /* RST, ACK */
	}
	words[4] = 0;
}

/*
 * While a checksum is left to the NIC, the field holds the sum of the pseudo header, and whoever completes it counts on
 * that. partial: it does.
 */
SW_INLINE void sw_sum_reset(struct tcphdr *tcp, __s64 pseudo, int partial)
{
	if (partial)
		tcp->check = ~sw_fold(pseudo);
	else
		tcp->check = sw_fold(bpf_csum_diff(0, 0, (__be32 *)tcp, sizeof(*tcp), pseudo));
}

static __noinline int sw_build_reset4(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	struct iphdr *ip = data + SW_L3;
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 length, headers;
	__be32 address;
	int partial;

	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	length = bpf_ntohs(ip->tot_len) - sizeof(*ip);
	headers = tcp->doff * 4;
	partial = tcp->check == (__u16)~sw_fold(sw_pseudo_sum(&ip->saddr, 8, length));
	sw_write_reset(tcp, length - headers);
	if (bpf_skb_change_tail(skb, SW_L3 + sizeof(*ip) + sizeof(*tcp), 0))
		return -1;
	data = (void *)(long)skb->data;
	ip = data + SW_L3;
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	address = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->tos = 0;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*tcp));
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->check = 0;
	ip->check = sw_fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
	sw_sum_reset(tcp, sw_pseudo_sum(&ip->saddr, 8, sizeof(*tcp)), partial);
	sw_turn_round(data);
	return 0;
}

static __noinline int sw_build_reset6(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	struct ipv6hdr *ip = data + SW_L3;
	struct tcphdr *tcp = (void *)(ip + 1);
	__be32 address[4];
	__u32 length, headers;
	int partial;

	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	length = bpf_ntohs(ip->payload_len);
	headers = tcp->doff * 4;
	partial = tcp->check == (__u16)~sw_fold(sw_pseudo_sum(&ip->saddr, 32, length));
	sw_write_reset(tcp, length - headers);
	if (bpf_skb_change_tail(skb, SW_L3 + sizeof(*ip) + sizeof(*tcp), 0))
		return -1;
	data = (void *)(long)skb->data;
	ip = data + SW_L3;
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	__builtin_memcpy(address, &ip->saddr, 16);
	__builtin_memcpy(&ip->saddr, &ip->daddr, 16);
	__builtin_memcpy(&ip->daddr, address, 16);
	ip->payload_len = bpf_htons(sizeof(*tcp));
	ip->hop_limit = 64;
	sw_sum_reset(tcp, sw_pseudo_sum(&ip->saddr, 32, sizeof(*tcp)), partial);
	sw_turn_round(data);
	return 0;
}
#endif /* !TRACE */

/* A RST to whoever sent the packet in hand. Returns a verdict. */
SW_INLINE int sw_answer_reset(struct __sk_buff *skb, struct sw_packet *p)
{
#ifndef TRACE
	__u32 l4 = SW_L3 + (p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

	if (p->tcp_flags & SW_TCP_RST || p->l4_offset != l4 || p->fragment || p->arrival == SW_FROM_TUNNEL ||
	    sw_is_for_all(skb))
		return TC_ACT_SHOT;
	if (!(p->family == 4 ? sw_build_reset4(skb) : sw_build_reset6(skb)))
		return sw_send_back(skb, p);
#endif
	return TC_ACT_SHOT;
}

/* Counts the packet in hand as dropped by the LB layer, and tells its sender. */
__noinline int sw_refuse(struct __sk_buff *skb, __u32 reason)
{
	struct sw_packet *p = sw_packet_here();
	int verdict;

	SW_USE_CONTEXT(skb);
	if (!p)
		return TC_ACT_SHOT;
	sw_drop_at(p, 0, SW_LAYER_LB, reason, p->service);
	if (p->protocol == IPPROTO_TCP)
		verdict = sw_answer_reset(skb, p);
	else
		verdict = sw_answer_error(skb, p,
					  p->family == 4 ? ICMP_DEST_UNREACH << 8 | ICMP_PORT_UNREACH :
							   ICMPV6_DEST_UNREACH << 8 | ICMPV6_PORT_UNREACH);
	if (verdict != TC_ACT_SHOT)
		sw_count(SW_COUNTER_LB_REFUSED);
	return verdict;
}

#endif /* SAMEWIRE_REFUSE_H */
