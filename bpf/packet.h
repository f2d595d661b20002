/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * packet.h - what the switch knows of the packet in hand, and its small change.
 *
 * The structure lives in a per-CPU array: the 512 bytes of stack are for locals only. tc programs run with bottom
 * halves off and never nest, so one per CPU is enough. Global (separately verified) functions fetch it again.
 */
#ifndef SAMEWIRE_PACKET_H
#define SAMEWIRE_PACKET_H

#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "maps.h"
#include "wire.h"

#define SW_INLINE static __always_inline
/* What few packets need: so that the code of all others stands together, which is 12 % less of it to wait for. */
#define SW_COLD __attribute__((cold, section(".text")))

/* In a global function that does not touch its context: else the compiler passes it anything. */
#define SW_USE_CONTEXT(skb) asm volatile("" : : "r"(skb))

#define SW_PASS TC_ACT_UNSPEC /* next filter, or the node's own stack */
#define SW_GO_ON (-100)	      /* of a step: nothing decided yet */

#define SW_L3 ETH_HLEN
#define SW_PULL_BYTES 128    /* made linear where the headers are not, or are not known yet */
#define SW_IPV6_EXTENSIONS 6 /* headers looked through before the packet counts as malformed */

#define SW_MARK 0x53570000 /* on what the switch sends out of the uplink: sw_uplink_out knows its own */

#define SW_FRAGMENT_FIRST 1
#define SW_FRAGMENT_LATER 2

#define IP_MF_ 0x2000
#define IP_OFFSET_ 0x1fff

/* A connection or packet, by its ends. */
struct sw_tuple {
	struct sw_addr source;
	struct sw_addr destination;
	__be16 source_port;
	__be16 destination_port;
};

struct sw_packet {
	struct sw_flow_key key; /* of the tuple as it arrived */
	struct sw_tuple tuple;	/* as it arrived */

	/* Parsed. All that every packet needs stands together, up to jiffies: it is what the caches have to bring. */
	__u8 direction; /* of the packet under key: 0 or 1 */
	__u8 family;
	__u8 protocol;
	__u8 tcp_flags; /* SW_TCP_*; SYN only without ACK */
	__u8 ttl;
	__u8 fragment; /* SW_FRAGMENT_* */
	__u8 icmp_type;
	__u8 icmp_error;
	__u8 neighbour; /* ICMPv6 neighbour or router discovery, MLD */
	__u8 arrival;
	__u8 keep_frame; /* from a Transparent port: L2 as the pod wrote it */
	__u8 port_flags; /* SW_PORT_* of port_id */
	__u16 scope;
	__u16 l4_offset;
	__u16 payload_offset;
	__u16 fragment_offset; /* of the IPv6 fragment header */
	__u32 device;	 /* arrival ifindex, charged with drops while no port is known */
	__u32 port_id;	 /* pod port it came from, 0 otherwise */
	__u32 port_generation; /* of that port */
	__u32 changes;	 /* sw_changes as it arrived */
	__u32 tick;	 /* what it was at jiffies; the two outlive the packet */
	__u64 jiffies;

	/* What few need. */
	__u16 quoted_checksum; /* of an ICMP error: offset of the quoted L4 checksum, 0 = not quoted */
	__u8 quoted_protocol;
	__u8 recycled; /* flows that sw_recycle() has removed */
	__u32 fragment_id;
	__u32 tunnel_vni;
	__u32 limit_mtu; /* for the "too big" answer */
	__u32 ip_bytes;	 /* as the IP header says; only where flows have counters */
	struct sw_addr answers; /* who answers a neighbour's question */

	/* The connection as its initiator sees it (equals the packet for a first packet) and the decision on it. */
	struct sw_tuple first;
	struct sw_tuple out; /* after the walk */
	struct sw_action forward;
	struct sw_action reverse;
	struct sw_action chosen; /* what sw_finish() applies to the packet in hand */
	__u32 port[2];
	__u32 generation[2];
	__u32 rule[2];
	__u32 first_port; /* ifindex of the initiator's host end, 0 = not a pod here */
	__u16 first_scope;
	__u16 out_scope;
	__u8 first_arrival;
	__u8 needs_flow;
	__u8 wants_snat;
	__u8 route_flags;

	/* The LB layer's. */
	struct sw_addr service_source; /* the node's own in the backend's network */
	__u32 kept;    /* backend that a re-decision keeps; 0 for a first packet */
	__u32 backend; /* the chosen one; 0 = no service */
	__u32 service;
	__u16 backend_scope;
	__u8 is_direct;   /* the VIP stays on the connection's packets */
	__u8 kept_direct; /* and has done so far */
	__u8 inner_mac[8]; /* destination of a decapsulated frame: whom it is for */
	__u16 nat_ports;   /* of the pool that the initiator may use, 0 = all */
	__u16 aside;	   /* SW_SCOPE_ASIDE: the first packet's own key is another connection's */
	__u64 route_set;   /* own routes of whoever sends: the initiator, then the target; 0 = none */

	/* Room for values written to maps. */
	struct sw_flow flow;
	struct sw_flow_key flow_key; /* of the flow in hand, where it is not key */
	struct sw_flow_key other;    /* key of the second entry of a pair */
	struct sw_drop_key drop;
	__u8 other_direction;
	__u8 looked_at; /* flows that sw_recycle() has looked at */
	__u8 leaves;	/* of a flow that is judged again: it is a pod's connection that leaves by the uplink */
	__u8 unserved;	/* and the packet in hand goes the way that the partner of its entry serves */
	__u32 next_slot; /* where this CPU's last insertion ended; outlives the packet */
#ifdef TRACE
	struct sw_flow_key gone[2]; /* of the flow that the untraced programs would have removed by now */
#endif
};

SW_MAP(sw_scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct sw_packet, 1, 0);

SW_INLINE struct sw_packet *sw_packet_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_scratch, &zero);
}

SW_INLINE struct sw_config *sw_config_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_config, &zero);
}

SW_INLINE struct sw_cursors *sw_cursors_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_cursors, &zero);
}

SW_INLINE __u32 sw_now_tick(void)
{
	return bpf_ktime_get_coarse_ns() >> SW_TICK_SHIFT;
}

/* The same, for every packet: the coarse clock moves with the jiffies, and those are read without a call. */
SW_INLINE __u32 sw_packet_tick(struct sw_packet *p)
{
	__u64 jiffies = bpf_jiffies64();

	if (p->jiffies != jiffies) {
		p->jiffies = jiffies;
		p->tick = sw_now_tick();
	}
	return p->tick;
}

#ifndef TRACE
/*
 * Slots of the flow table that have counters: all, or none. A constant that the daemon sets before loading: the verifier
 * takes away what it finds is never run.
 */
const volatile __u32 sw_counted_slots;
#endif

/* What the IP header says of the packet's length: the frame of a short one is longer. */
SW_INLINE void sw_note_length(struct sw_packet *p, __u32 bytes)
{
#ifndef TRACE
	if (sw_counted_slots)
		p->ip_bytes = bytes;
#endif
}

SW_INLINE int sw_side6(const struct sw_packet *p)
{
	return p->family == 6;
}

SW_INLINE void sw_set_ipv4(struct sw_addr *address, __be32 ip)
{
	__be32 *word = (__be32 *)address->b;

	word[0] = ip;
	word[1] = 0;
	word[2] = 0;
	word[3] = 0;
}

SW_INLINE void sw_copy_address(struct sw_addr *to, const struct sw_addr *from)
{
	const __u32 *f = (const __u32 *)from->b;
	__u32 *t = (__u32 *)to->b;

	t[0] = f[0];
	t[1] = f[1];
	t[2] = f[2];
	t[3] = f[3];
}

SW_INLINE int sw_same_address(const struct sw_addr *a, const struct sw_addr *b)
{
	const __u32 *x = (const __u32 *)a->b;
	const __u32 *y = (const __u32 *)b->b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

SW_INLINE int sw_zero_address(const struct sw_addr *a)
{
	const __u32 *x = (const __u32 *)a->b;

	return !(x[0] | x[1] | x[2] | x[3]);
}

SW_INLINE int sw_is_link_local(const struct sw_addr *address)
{
	return address->b[0] == 0xfe && (address->b[1] & 0xc0) == 0x80;
}

SW_INLINE int sw_same_mac(const __u8 *a, const __u8 *b)
{
	return *(const __u32 *)a == *(const __u32 *)b && *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

SW_INLINE void sw_copy_mac(__u8 *to, const __u8 *from)
{
	*(__u32 *)to = *(const __u32 *)from;
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

SW_INLINE int sw_has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

SW_INLINE int sw_is_icmp(const struct sw_packet *p)
{
	return (p->family == 4 && p->protocol == IPPROTO_ICMP) || (p->family == 6 && p->protocol == IPPROTO_ICMPV6);
}

/* 1 if (a, a_port) sorts after (b, b_port). */
SW_INLINE int sw_sorts_after(const struct sw_addr *a, __be16 a_port, const struct sw_addr *b, __be16 b_port)
{
	const __be32 *x = (const __be32 *)a->b;
	const __be32 *y = (const __be32 *)b->b;

	if (x[0] != y[0])
		return bpf_ntohl(x[0]) > bpf_ntohl(y[0]);
	if (x[1] != y[1])
		return bpf_ntohl(x[1]) > bpf_ntohl(y[1]);
	if (x[2] != y[2])
		return bpf_ntohl(x[2]) > bpf_ntohl(y[2]);
	if (x[3] != y[3])
		return bpf_ntohl(x[3]) > bpf_ntohl(y[3]);
	return bpf_ntohs(a_port) > bpf_ntohs(b_port);
}

/* Fills the canonical key of a tuple; returns the tuple's direction under it. */
SW_INLINE __u8 sw_make_key(struct sw_flow_key *key, const struct sw_tuple *t, __u16 scope, __u8 family, __u8 protocol)
{
	__u8 swap = sw_sorts_after(&t->source, t->source_port, &t->destination, t->destination_port);

	if (swap) {
		sw_copy_address(&key->address[0], &t->destination);
		sw_copy_address(&key->address[1], &t->source);
		key->port[0] = t->destination_port;
		key->port[1] = t->source_port;
	} else {
		sw_copy_address(&key->address[0], &t->source);
		sw_copy_address(&key->address[1], &t->destination);
		key->port[0] = t->source_port;
		key->port[1] = t->destination_port;
	}
	key->scope = scope;
	key->family = family;
	key->protocol = protocol;
	return swap;
}

/* The same, verified once, for all but the fast path. Negative: never. */
__noinline int sw_key_of(struct sw_flow_key *key, const struct sw_tuple *t, __u32 scope, __u32 family, __u32 protocol)
{
	if (!key || !t)
		return -1;
	return sw_make_key(key, t, scope, family, protocol);
}

SW_INLINE void sw_reverse_tuple(struct sw_tuple *to, const struct sw_tuple *from)
{
	sw_copy_address(&to->source, &from->destination);
	sw_copy_address(&to->destination, &from->source);
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
}

SW_INLINE void sw_copy_tuple(struct sw_tuple *to, const struct sw_tuple *from)
{
	sw_copy_address(&to->source, &from->source);
	sw_copy_address(&to->destination, &from->destination);
	to->source_port = from->source_port;
	to->destination_port = from->destination_port;
}

SW_INLINE void sw_copy_action(struct sw_action *to, const struct sw_action *from)
{
	to->fate = from->fate;
	to->flags = from->flags;
	to->source_port = from->source_port;
	to->destination_port = from->destination_port;
	to->reserved = 0;
	to->target = from->target;
	sw_copy_address(&to->source, &from->source);
	sw_copy_address(&to->destination, &from->destination);
}

#endif /* SAMEWIRE_PACKET_H */
