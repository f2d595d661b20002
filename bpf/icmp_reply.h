/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * icmp_reply.h - "too big" and "time exceeded", from the gateway's address, back the way the packet came.
 *
 * The frame in hand is cut to what an ICMP error quotes, behind room for new headers, and it is turned round. The packet
 * itself is lost, so it counts as a drop all the same.
 */
#ifndef SAMEWIRE_ICMP_REPLY_H
#define SAMEWIRE_ICMP_REPLY_H

#include "account.h"
#include "rewrite.h"
#include "tables.h"

/* Of a packet, with its headers; of TCP the whole of them also where it is small. */
#define SW_QUOTE4_LONG 72 /* the longest header, and its ports */
#define SW_QUOTE4_TCP 40
#define SW_QUOTE4_SHORT 28 /* header + 8 bytes, the least RFC 792 asks for */
#define SW_QUOTE6_LONG 96
#define SW_QUOTE6_TCP 60
#define SW_QUOTE6_SHORT 48
#define SW_CUT_OFF 256 /* no L4 header begins behind that */

struct sw_icmp4_header {
	struct iphdr ip;
	struct icmphdr icmp;
};

struct sw_icmp6_header {
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
};

SW_INLINE __sum16 sw_fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

#ifndef TRACE
SW_INLINE void sw_turn_round(__u8 *eth)
{
	__u8 mac[8] __attribute__((aligned(8)));

	sw_copy_mac(mac, eth);
	sw_copy_mac(eth, eth + 6);
	sw_copy_mac(eth + 6, mac);
}

/* Who the error comes from: the gateway of the port; without one, or for a port, whoever the packet was for. */
SW_INLINE const struct sw_addr *sw_error_source(struct sw_packet *p, __u32 type_code)
{
	int router = type_code != (p->family == 4 ? ICMP_DEST_UNREACH << 8 | ICMP_PORT_UNREACH :
						    ICMPV6_DEST_UNREACH << 8 | ICMPV6_PORT_UNREACH);
	struct sw_port *port = router && p->port_id ? sw_find_port(p->port_id) : 0;

	if (port) {
		const struct sw_addr *gateway = sw_side6(p) ? &port->gateway[1] : &port->gateway[0];

		if (!sw_zero_address(gateway))
			return gateway;
	}
	return &p->tuple.destination;
}

/*
 * Makes of the frame in hand its Ethernet header, room for others, and the first bytes of the packet behind them. The
 * checksum of that may have been left to the NIC, which would write it into the quote, when the sum of the error is
 * made; the kernel forgets of it when the place where it begins is taken away.
 */
static __noinline int sw_quote_behind(struct __sk_buff *skb, struct sw_packet *p, __u32 headers, __u32 quote)
{
	void *kept = &p->flow;

	if (!quote || quote > SW_QUOTE6_LONG)
		return -1;
	return bpf_skb_load_bytes(skb, SW_L3, kept, quote) ||
	       bpf_skb_change_tail(skb, SW_L3 + SW_CUT_OFF + headers + quote, 0) ||
	       bpf_skb_adjust_room(skb, -SW_CUT_OFF, BPF_ADJ_ROOM_MAC, 0) ||
	       bpf_skb_store_bytes(skb, SW_L3 + headers, kept, quote, 0);
}

static __noinline int sw_build_error4(struct __sk_buff *skb, struct sw_packet *p, __u32 type_code, __u32 quote)
{
	const struct sw_addr *source = sw_error_source(p, type_code);
	struct sw_icmp4_header *header;
	void *data, *end;
	__s64 sum;

	if (sw_quote_behind(skb, p, sizeof(*header), quote))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	header = data + SW_L3;
	if ((void *)(header + 1) > end)
		return -1;
	__builtin_memset(header, 0, sizeof(*header));
	header->ip.version = 4;
	header->ip.ihl = 5;
	header->ip.tos = 0xc0; /* internetwork control, as the kernel's */
	header->ip.tot_len = bpf_htons(sizeof(*header) + quote);
	header->ip.ttl = 64;
	header->ip.protocol = IPPROTO_ICMP;
	header->ip.saddr = *(__be32 *)source->b;
	header->ip.daddr = *(__be32 *)p->tuple.source.b;
	header->icmp.type = type_code >> 8;
	header->icmp.code = type_code & 0xff;
	if (type_code == (ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED))
		header->icmp.mtu = bpf_htons(p->limit_mtu);
	header->ip.check = sw_fold(bpf_csum_diff(0, 0, (__be32 *)&header->ip, sizeof(header->ip), 0));

	if (quote == SW_QUOTE4_LONG) {
		if (data + SW_L3 + sizeof(header->ip) + 8 + SW_QUOTE4_LONG > end)
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)&header->icmp, 8 + SW_QUOTE4_LONG, 0);
	} else if (quote == SW_QUOTE4_TCP) {
		if (data + SW_L3 + sizeof(header->ip) + 8 + SW_QUOTE4_TCP > end)
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)&header->icmp, 8 + SW_QUOTE4_TCP, 0);
	} else {
		if (data + SW_L3 + sizeof(header->ip) + 8 + SW_QUOTE4_SHORT > end)
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)&header->icmp, 8 + SW_QUOTE4_SHORT, 0);
	}
	header->icmp.checksum = sw_fold(sum);
	sw_turn_round(data);
	return 0;
}

static __noinline int sw_build_error6(struct __sk_buff *skb, struct sw_packet *p, __u32 type_code, __u32 quote)
{
	const struct sw_addr *source = sw_error_source(p, type_code);
	struct sw_icmp6_header *header;
	__be32 pseudo[2];
	void *data, *end;
	__s64 sum;

	if (sw_quote_behind(skb, p, sizeof(*header), quote))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	header = data + SW_L3;
	if ((void *)(header + 1) > end)
		return -1;
	__builtin_memset(header, 0, sizeof(*header));
	header->ip.version = 6;
	header->ip.payload_len = bpf_htons(8 + quote);
	header->ip.nexthdr = IPPROTO_ICMPV6;
	header->ip.hop_limit = 64;
	__builtin_memcpy(&header->ip.saddr, source->b, 16);
	__builtin_memcpy(&header->ip.daddr, p->tuple.source.b, 16);
	header->icmp.icmp6_type = type_code >> 8;
	header->icmp.icmp6_code = type_code & 0xff;
	if (type_code == ICMPV6_PKT_TOOBIG << 8)
		header->icmp.icmp6_mtu = bpf_htonl(p->limit_mtu);

	pseudo[0] = bpf_htonl(8 + quote);
	pseudo[1] = bpf_htonl(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&header->ip.saddr, 32, sum);
	if (quote == SW_QUOTE6_LONG) {
		if (data + SW_L3 + sizeof(header->ip) + 8 + SW_QUOTE6_LONG > end)
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)&header->icmp, 8 + SW_QUOTE6_LONG, sum);
	} else if (quote == SW_QUOTE6_TCP) {
		if (data + SW_L3 + sizeof(header->ip) + 8 + SW_QUOTE6_TCP > end)
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)&header->icmp, 8 + SW_QUOTE6_TCP, sum);
	} else {
		if (data + SW_L3 + sizeof(header->ip) + 8 + SW_QUOTE6_SHORT > end)
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)&header->icmp, 8 + SW_QUOTE6_SHORT, sum);
	}
	header->icmp.icmp6_cksum = sw_fold(sum);
	sw_turn_round(data);
	return 0;
}

/*
 * To the node: by samewire0 what that has sent. Anything else a hook has brought, for a VIP or for the node itself, and what
 * is said to that comes by lo, as answers do: samewire0 has no address where all pods are on the underlay, and the stack
 * takes nothing there from whom it has another route to.
 */
SW_INLINE int sw_send_back(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_config *config = sw_config_here();
	const __u8 *mac = (void *)(long)skb->data;
	struct sw_addr none = {};

	if (p->arrival == SW_FROM_HOST) {
		if (!config || (void *)(mac + ETH_HLEN) > (void *)(long)skb->data_end)
			return TC_ACT_SHOT;
		if (sw_same_mac(mac, config->host_mac))
			return bpf_redirect(config->host_ifindex, BPF_F_INGRESS);
		return sw_set_macs(skb, none.b, none.b) ? TC_ACT_SHOT : bpf_redirect(SW_LOOPBACK, BPF_F_INGRESS);
	}
	if (p->arrival == SW_FROM_UPLINK)
		skb->mark = SW_MARK;
	return bpf_redirect(skb->ifindex, 0);
}
#endif /* !TRACE */

/* How much of the packet is quoted; 0: it is too short for an answer. */
SW_INLINE __u32 sw_quote_length(const struct sw_packet *p, __u32 length)
{
	int v4 = p->family == 4;

	if (length >= (v4 ? SW_QUOTE4_LONG : SW_QUOTE6_LONG))
		return v4 ? SW_QUOTE4_LONG : SW_QUOTE6_LONG;
	if (p->protocol == IPPROTO_TCP && length >= (v4 ? SW_QUOTE4_TCP : SW_QUOTE6_TCP))
		return v4 ? SW_QUOTE4_TCP : SW_QUOTE6_TCP;
	if (length >= (v4 ? SW_QUOTE4_SHORT : SW_QUOTE6_SHORT))
		return v4 ? SW_QUOTE4_SHORT : SW_QUOTE6_SHORT;
	return 0;
}

#ifndef TRACE
/* A frame for everybody: nobody answers that (RFC 1122, 3.2.2 and 4.2.3.10), and its destination is no sender's MAC. */
SW_INLINE int sw_is_for_all(struct __sk_buff *skb)
{
	const __u8 *mac = (void *)(long)skb->data;

	return (void *)(mac + ETH_HLEN) > (void *)(long)skb->data_end || mac[0] & 1;
}
#endif

__noinline int sw_answer_error(struct __sk_buff *skb, struct sw_packet *p, __u32 type_code)
{
#ifndef TRACE
	__u32 quote;

	if (!p)
		return TC_ACT_SHOT;
	quote = sw_quote_length(p, skb->len - SW_L3);
	/* Never about an error, a later fragment, or a packet whose sender is elsewhere. */
	if (!quote || p->icmp_error || p->fragment == SW_FRAGMENT_LATER || p->arrival == SW_FROM_TUNNEL ||
	    sw_is_for_all(skb))
		return TC_ACT_SHOT;
	if (!(p->family == 4 ? sw_build_error4(skb, p, type_code, quote) : sw_build_error6(skb, p, type_code, quote)))
		return sw_send_back(skb, p);
#endif
	return TC_ACT_SHOT;
}

/* The packet is longer than p->limit_mtu allows on its way. */
SW_COLD __noinline int sw_answer_too_big(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	int verdict;

	SW_USE_CONTEXT(skb);
	if (!p)
		return TC_ACT_SHOT;
	sw_drop(p, SW_LAYER_MTU, SW_REASON_TOO_BIG);
	verdict = sw_answer_error(skb, p,
				  p->family == 4 ? ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED : ICMPV6_PKT_TOOBIG << 8);
	if (verdict != TC_ACT_SHOT)
		sw_count(SW_COUNTER_TOO_BIG_SENT);
	return verdict;
}

SW_COLD __noinline int sw_answer_time_exceeded(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	int verdict;

	SW_USE_CONTEXT(skb);
	if (!p)
		return TC_ACT_SHOT;
	sw_drop(p, SW_LAYER_ROUTE, SW_REASON_TTL);
	verdict = sw_answer_error(skb, p, p->family == 4 ? ICMP_TIME_EXCEEDED << 8 : ICMPV6_TIME_EXCEED << 8);
	if (verdict != TC_ACT_SHOT)
		sw_count(SW_COUNTER_TIME_EXCEEDED_SENT);
	return verdict;
}

#endif /* SAMEWIRE_ICMP_REPLY_H */
