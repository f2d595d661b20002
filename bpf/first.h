/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * first.h - the walk of a connection's first packet through the layers, and the decision it leaves.
 *
 * Input: p->first (the connection as its initiator sees it), first_arrival, first_scope, first_port. Output: p->out (the
 * tuple after the walk), p->forward and p->reverse (what happens to the initiator's and to the target's packets), the
 * two ports with their generations, and whether any of it needs a flow. Steps return SW_GO_ON or a verdict.
 */
#ifndef SAMEWIRE_FIRST_H
#define SAMEWIRE_FIRST_H

#include "acl.h"
#include "lb.h"
#include "route.h"

#define SW_DENIED (-105) /* of the walk: by an ACL */

SW_INLINE const struct sw_addr *sw_gateway_of(const struct sw_packet *p, const struct sw_port *port)
{
	return sw_side6(p) ? &port->gateway[1] : &port->gateway[0];
}

/* The node's own address in a port's network: on the underlay, the gateway is another machine. */
SW_INLINE const struct sw_addr *sw_node_of(const struct sw_packet *p, const struct sw_port *port)
{
	struct sw_config *config = p->out_scope == SW_SCOPE_UPLINK ? sw_config_here() : 0;

	return config ? &config->address[sw_side6(p)] : sw_gateway_of(p, port);
}

SW_INLINE void sw_start_walk(struct sw_packet *p)
{
	sw_copy_tuple(&p->out, &p->first);
	p->out_scope = p->first_scope;
	p->forward.fate = SW_TO_NOWHERE;
	p->forward.flags = 0;
	p->forward.target = 0;
	p->reverse.fate = SW_TO_NOWHERE;
	p->reverse.flags = 0;
	p->reverse.target = 0;
	p->port[0] = p->first_port;
	p->port[1] = 0;
	p->generation[0] = 0;
	p->generation[1] = 0;
	p->rule[0] = 0;
	p->rule[1] = 0;
	p->needs_flow = 0;
	p->wants_snat = 0;
	p->nat_ports = 0;
	p->route_flags = 0;
	p->backend = 0;
	p->service = 0;
	p->is_direct = 0;
	p->route_set = 0;
}

/* The initiator's port, before all that depends on it: a change of its policy from now on has the flow judged again. */
SW_INLINE struct sw_port *sw_know_initiator(struct sw_packet *p)
{
	struct sw_port *own = sw_find_port(p->first_port);

	if (!own)
		return 0;
	p->generation[0] = sw_generation_of(own);
	p->route_set = own->route_set;
	return own;
}

/* NAT: OutBoundNAT of the initiator's endpoint. The port is chosen when the flow is inserted. */
SW_INLINE void sw_nat_layer(struct sw_packet *p, struct sw_port *own)
{
	struct sw_nat *nat;

	if (!own->nat_set || p->forward.fate == SW_TO_HOST || p->wants_snat)
		return;
	nat = sw_find_nat(own->nat_set, p->family, &p->out.destination);
	if (!nat || nat->action != SW_NAT_SNAT)
		return;
	if (p->forward.fate != SW_TO_UPLINK && !(nat->flags & SW_NAT_EXPLICIT))
		return;
	sw_copy_address(&p->out.source, &nat->address);
	p->wants_snat = 1;
	p->nat_ports = nat->ports;
	p->needs_flow = 1;
	sw_count_rule(p->first_port, nat->rule, SW_COUNTED_NAT);
	sw_step(p, SW_LAYER_NAT, SW_STEP_REWRITE, SW_NAT_SNAT, nat->rule, 0);
}

/* The target's side: hairpin, its ACL, its generation. */
SW_INLINE int sw_target_layers(struct sw_packet *p)
{
	int from_node, loopback = p->first_arrival == SW_FROM_HOST && sw_is_loopback(p->family, &p->first.source);
	struct sw_port *target;

	if (p->forward.fate != SW_TO_PORT)
		return SW_GO_ON;
	target = sw_find_port(p->forward.target);
	if (!target)
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT);
	p->port[1] = p->forward.target;
	p->generation[1] = sw_generation_of(target);
	p->route_set = target->route_set;
	if (target->acl_words[SW_ACL_IN] || target->acl_words[SW_ACL_OUT])
		p->needs_flow = 1;
	if (target->nat_set && (p->first_arrival == SW_FROM_UPLINK || target->flags & SW_PORT_NAT_EXPLICIT))
		p->needs_flow = 1; /* its replies must not take the NAT layer for a new connection */

	/* Node to local pod is always allowed: probes. */
	from_node = loopback || (p->first_arrival == SW_FROM_HOST &&
				 sw_is_host_address(p->out_scope, p->family, &p->first.source));
	if (!from_node && sw_judge(p, target, p->forward.target, SW_ACL_IN) != SW_GO_ON)
		return SW_DENIED;

	/* A pod to itself through a host port, or into a network where its address means somebody else. Loopback, too. */
	if ((p->first_arrival == SW_FROM_POD ?
		     p->forward.target == p->first_port || p->out_scope != p->first_scope :
		     loopback) &&
	    !p->wants_snat) {
		sw_copy_address(&p->out.source, loopback ? sw_node_of(p, target) : sw_gateway_of(p, target));
		p->wants_snat = 1;
		p->needs_flow = 1;
		sw_step(p, SW_LAYER_NAT, SW_STEP_REWRITE, SW_NAT_SNAT, 0, p->forward.target);
	}
	return SW_GO_ON;
}

/* GUARD: what a pod encapsulates itself would speak, inside, for any pod of any network, here or on another node. */
SW_INLINE int sw_poses_as_tunnel(const struct sw_packet *p, const struct sw_port *own)
{
	struct sw_config *config = sw_config_here();

	return config && p->protocol == IPPROTO_UDP && p->out.destination_port == config->vxlan_port &&
	       (p->forward.fate == SW_TO_HOST || p->forward.fate == SW_TO_UPLINK) && !(own->flags & SW_PORT_NO_GUARD);
}

/* The initiator's own layers. */
SW_INLINE int sw_initiator_layers(struct sw_packet *p, struct sw_port *own)
{
	if (sw_poses_as_tunnel(p, own))
		return sw_drop_at(p, p->first_port, SW_LAYER_GUARD, SW_REASON_BLOCKED, 0);
	if (own->acl_words[SW_ACL_IN] || own->acl_words[SW_ACL_OUT])
		p->needs_flow = 1;
	if (sw_judge(p, own, p->first_port, SW_ACL_OUT) != SW_GO_ON)
		return SW_DENIED;
	sw_nat_layer(p, own);
	return SW_GO_ON;
}

SW_INLINE int sw_route_plain(struct sw_packet *p)
{
	switch (p->first_arrival) {
	case SW_FROM_POD:
		return sw_route_from_pod(p);
	case SW_FROM_UPLINK:
		return sw_route_from_uplink(p);
	case SW_FROM_TUNNEL:
		return sw_route_from_tunnel(p);
	default:
		return sw_route_from_host(p);
	}
}

/*
 * An endpoint that has the port, else the node's own stack: what is for an address of the node, and no service's. What the
 * node has said to itself comes here by a flow of an endpoint that has the port no more.
 */
SW_INLINE int sw_route_to_node(struct sw_packet *p)
{
	if (p->forward.fate == SW_TO_NOWHERE) {
		if (p->first_arrival == SW_FROM_UPLINK)
			return SW_PASS;
		p->forward.fate = SW_TO_HOST;
		p->forward.target = p->first_arrival == SW_FROM_HOST ? SW_LOOPBACK : 0;
	} else if (p->first_arrival == SW_FROM_UPLINK && p->out_scope != SW_SCOPE_UPLINK) {
		p->forward.flags |= SW_DECREMENT;
	}
	return SW_GO_ON;
}

SW_INLINE int sw_route_to_backend(struct sw_packet *p)
{
	int verdict;

	if (p->is_direct)
		return sw_answers_elsewhere(p) ? sw_lend_source(p) : SW_GO_ON;
	if (!sw_backend_is_near(p))
		return sw_route_across(p);
	verdict = sw_route_from_pod(p);
	if (verdict != SW_TO_NODE)
		return verdict;
	p->forward.fate = SW_TO_HOST;
	return SW_GO_ON;
}

/* LB, PORTMAP and ROUTE: where to. A NodePort is asked for only where the address is known to be the node's. */
SW_INLINE int sw_routing(struct __sk_buff *skb, struct sw_packet *p)
{
	int verdict = sw_tunnel_guard(p);

	if (verdict == SW_GO_ON && sw_receive_direct(p))
		return SW_GO_ON;
	if (verdict == SW_GO_ON && sw_poses_as_node(p))
		return sw_drop(p, SW_LAYER_DECAP, SW_REASON_SPOOFED_IP);
	if (verdict == SW_GO_ON)
		verdict = sw_balance(skb, 0);
	if (verdict == SW_GO_ON && !p->backend) {
		verdict = sw_route_plain(p);
		if (verdict == SW_TO_NODE) {
			verdict = sw_balance(skb, 1);
			if (verdict == SW_GO_ON && !p->backend)
				verdict = sw_route_to_node(p);
		}
	}
	if (verdict == SW_GO_ON && p->backend)
		verdict = sw_route_to_backend(p);
	if (verdict == SW_GO_ON)
		sw_step(p, SW_LAYER_ROUTE, SW_STEP_PASS, p->forward.fate, 0, p->forward.target);
	return verdict;
}

/* The whole walk. */
__noinline int sw_walk(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_port *own = 0;
	int verdict;

	if (!p)
		return TC_ACT_SHOT;
	sw_start_walk(p);
	if (p->first_arrival == SW_FROM_POD) {
		own = sw_know_initiator(p);
		if (!own)
			return sw_drop(p, SW_LAYER_PARSE, SW_REASON_UNKNOWN_PORT);
	}
	verdict = sw_routing(skb, p);
	if (verdict != SW_GO_ON)
		return verdict;
	verdict = own ? sw_initiator_layers(p, own) : SW_GO_ON;
	if (verdict != SW_GO_ON)
		return verdict;
	verdict = sw_target_layers(p);
	if (verdict != SW_GO_ON)
		return verdict;
	sw_route_back(p);
	if (p->out_scope != p->first_scope)
		p->needs_flow = 1;
	return SW_GO_ON;
}

#endif /* SAMEWIRE_FIRST_H */
