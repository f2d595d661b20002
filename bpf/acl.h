/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * acl.h - the ACL layers: the port's prioritised 5-tuple list, first match wins, no match blocks.
 */
#ifndef SAMEWIRE_ACL_H
#define SAMEWIRE_ACL_H

#include "account.h"
#include "tables.h"

struct sw_acl_walk {
	struct sw_acl_key key;
	__u32 rule; /* 0: nothing matched */
	__u16 local_port;
	__u16 remote_port;
	__u8 family;
	__u8 protocol;
	__u8 action;
	__u8 local_is_source;
};

SW_INLINE int sw_in_prefix(const struct sw_addr *address, const struct sw_addr *prefix, __u8 bits)
{
	const __be32 *a = (const __be32 *)address->b;
	const __be32 *p = (const __be32 *)prefix->b;
	int i;

	for (i = 0; i < 4; i++) {
		if (bits < 32)
			return !bits || !((bpf_ntohl(a[i]) ^ bpf_ntohl(p[i])) >> (32 - bits));
		if (a[i] != p[i])
			return 0;
		bits -= 32;
	}
	return 1;
}

static long sw_acl_try(__u32 index, void *context)
{
	struct sw_acl_walk *walk = context;
	struct sw_packet *p = sw_packet_here();
	struct sw_acl_rule *rule;

	walk->key.index = index;
	rule = bpf_map_lookup_elem(&sw_acl, &walk->key);
	if (!rule || !p)
		return 1; /* a set in removal: nothing matched, blocked */
	if (rule->protocol != SW_PROTOCOL_ANY && rule->protocol != walk->protocol)
		return 0;
	if (rule->family && rule->family != walk->family)
		return 0;
	if (walk->local_port < rule->local_port_low || walk->local_port > rule->local_port_high ||
	    walk->remote_port < rule->remote_port_low || walk->remote_port > rule->remote_port_high)
		return 0;
	if (!sw_in_prefix(walk->local_is_source ? &p->first.source : &p->out.destination, &rule->local,
			  rule->local_bits))
		return 0;
	if (!sw_in_prefix(walk->local_is_source ? &p->out.destination : &p->first.source, &rule->remote,
			  rule->remote_bits))
		return 0;
	walk->rule = rule->rule;
	walk->action = rule->action;
	return 1;
}

/*
 * Judges the connection p->first with the destination of p->out (the un-SNATed client and the chosen DIP) by one
 * side's list. Writes the rule to p->rule (0 out, 1 in). Returns SW_GO_ON or a drop.
 */
SW_INLINE int sw_judge(struct sw_packet *p, struct sw_port *port, __u32 port_id, int side)
{
	struct sw_acl_walk walk = {};
	__u32 entries = port->acl_count[side] & 0xffff;
	__u8 layer = side == SW_ACL_OUT ? SW_LAYER_ACL_OUT : SW_LAYER_ACL_IN;
	__u16 source_port = sw_has_ports(p->protocol) ? bpf_ntohs(p->first.source_port) : 0;
	__u16 destination_port = sw_has_ports(p->protocol) ? bpf_ntohs(p->out.destination_port) : 0;

	if (!entries) {
		sw_step(p, layer, SW_STEP_PASS, 0, 0, port_id);
		return SW_GO_ON;
	}
	if (entries > SW_MAX_ACL_PER_SET)
		entries = SW_MAX_ACL_PER_SET;
	walk.key.set = port->acl_set[side];
	walk.family = p->family;
	walk.protocol = p->protocol;
	walk.local_is_source = side == SW_ACL_OUT;
	walk.local_port = walk.local_is_source ? source_port : destination_port;
	walk.remote_port = walk.local_is_source ? destination_port : source_port;
	bpf_loop(entries, sw_acl_try, &walk, 0);
	if (!walk.rule || walk.action != SW_ACL_ALLOW)
		return sw_drop_at(p, port_id, layer, SW_REASON_BLOCKED, walk.rule);
	p->rule[side == SW_ACL_IN] = walk.rule;
	sw_step(p, layer, SW_STEP_PASS, SW_ACL_ALLOW, walk.rule, port_id);
	return SW_GO_ON;
}

#endif /* SAMEWIRE_ACL_H */
