/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * deliver.h - the end of every packet's way: TTL, MTU, transposition, L2, and the redirect.
 *
 * To a pod: redirect_peer (or the host end's TBF when the endpoint has a cap). To the uplink: redirect_neigh to the
 * next hop's address, so that a gateway whose MAC changes costs no connection; in a VLAN, of which the node's own
 * neighbour table knows nothing, to the MAC that the pod has found. To the tunnel: tunnel key + redirect to
 * the external-mode VXLAN device. To the host: ingress of samewire0.
 */
#ifndef SAMEWIRE_DELIVER_H
#define SAMEWIRE_DELIVER_H

#include "account.h"
#include "icmp_reply.h"
#include "rewrite.h"
#include "tables.h"

#define AF_INET 2
#define AF_INET6 10

extern int LINUX_KERNEL_VERSION __kconfig;

#define SW_GSO_BY_FRAGS 0xffff /* of the kernel's: SCTP's packets are joined as they are, each of its own length */
#define SW_JUMBO_OPTION 8      /* IPv6's header with the length of what is longer than 64 KB (BIG TCP): goes at the cut */

/*
 * Length of the largest IP packet that this frame becomes on the wire. SCTP fills all of them but the last: what the mean
 * of them does not show is sent again alone.
 */
SW_INLINE __u32 sw_wire_length(struct __sk_buff *skb, const struct sw_packet *p)
{
	__u32 gso = skb->gso_size, before = SW_L3 + sizeof(struct ipv6hdr);

	if (gso == SW_GSO_BY_FRAGS)
		gso = (skb->len - p->payload_offset) / skb->gso_segs; /* BPF: by 0 is 0 */
	if (!gso)
		return skb->len - SW_L3;
	if (skb->len > before + 0xffff && p->family == 6 && p->l4_offset > before)
		gso -= SW_JUMBO_OPTION;
	return gso + p->payload_offset - SW_L3;
}

SW_INLINE int sw_to_port(struct __sk_buff *skb, struct sw_packet *p, __u32 id, const struct sw_port *port)
{
	if (port->flags & (SW_PORT_BLOCKED | SW_PORT_TAGGED)) {
		if (port->flags & SW_PORT_BLOCKED)
			return sw_drop_at(p, id, SW_LAYER_L2, SW_REASON_PORT_BLOCKED, 0);
		if (skb->vlan_present && bpf_skb_vlan_pop(skb))
			return sw_drop_at(p, id, SW_LAYER_L2, SW_REASON_INTERNAL, 0);
	}
	if (sw_set_mac(skb, 0, port->mac))
		return sw_drop_at(p, id, SW_LAYER_L2, SW_REASON_INTERNAL, 0);
	if ((!(port->flags & SW_PORT_TRANSPARENT) || p->arrival == SW_FROM_HOST) &&
	    sw_set_mac(skb, 6, port->gateway_mac))
		return sw_drop_at(p, id, SW_LAYER_L2, SW_REASON_INTERNAL, 0);
	/* From 6.15 on redirect_peer says itself whom the packet is for. The verifier knows the version: a call less. */
	if (LINUX_KERNEL_VERSION < KERNEL_VERSION(6, 15, 0) && skb->pkt_type != 0 /* PACKET_HOST */)
		bpf_skb_change_type(skb, 0);
#ifdef TRACE
	return sw_final(p, SW_LAYER_L2, SW_TO_PORT, id);
#else
	/* redirect_peer skips the host end's egress, where the TBF is. */
	return port->flags & SW_PORT_CAP_IN ? bpf_redirect(id, 0) : bpf_redirect_peer(id, 0);
#endif
}

/* The MAC that a port has on the underlay. Returns 1 and fills mac, or 0. */
SW_INLINE int sw_mac_on_wire(__u32 id, const struct sw_port *port, __u8 *mac)
{
	struct sw_source_mac *own = port->flags & SW_PORT_SOURCE_MAC ? bpf_map_lookup_elem(&sw_source_macs, &id) : 0;
	struct sw_config *config = sw_config_here();

	if (!config)
		return 0;
	sw_copy_mac(mac, port->flags & SW_PORT_TRANSPARENT ? port->mac : own ? own->mac : config->uplink_mac);
	return 1;
}

/* The frame in hand, as it is, to the wire: with the tag of a VLAN's hop. */
SW_INLINE int sw_put_on_wire(struct __sk_buff *skb, struct sw_packet *p, __u32 ifindex, __u32 vlan)
{
#ifdef TRACE
	return sw_final(p, SW_LAYER_L2, SW_TO_UPLINK, ifindex);
#else
	skb->mark = SW_MARK;
	if (vlan && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), vlan))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
	return bpf_redirect(ifindex, 0);
#endif
}

/* Into a VLAN, by the MAC that the pod has asked for there. Nobody else knows one. */
SW_COLD static __noinline int sw_to_vlan(struct __sk_buff *skb, struct sw_packet *p, __u32 ifindex, __u32 vlan)
{
	struct sw_port *port = p->arrival == SW_FROM_POD ? sw_find_port(p->port_id) : 0;
	__u8 mac[8] __attribute__((aligned(8))) = {};
	void *data = (void *)(long)skb->data;

	if (!port || !(port->flags & SW_PORT_TAGGED) || data + ETH_HLEN > (void *)(long)skb->data_end ||
	    sw_same_mac(data, port->gateway_mac))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_NO_NEXTHOP);
	if (!sw_mac_on_wire(p->port_id, port, mac) || sw_set_mac(skb, 6, mac))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
	return sw_put_on_wire(skb, p, ifindex, vlan);
}

#ifdef TRACE
SW_INLINE int sw_to_uplink(struct __sk_buff *skb, struct sw_packet *p, const struct sw_nexthop *hop,
			   const struct sw_addr *destination)
{
	if (hop->vni)
		return sw_to_vlan(skb, p, hop->ifindex, hop->vni);
	return sw_final(p, SW_LAYER_L2, SW_TO_UPLINK, hop->ifindex);
}

SW_INLINE int sw_to_tunnel(struct __sk_buff *skb, struct sw_packet *p, const struct sw_nexthop *hop)
{
	struct sw_config *config = sw_config_here();

	if (!config || sw_set_macs(skb, hop->mac, config->tunnel_mac))
		return sw_drop(p, SW_LAYER_ENCAP, SW_REASON_INTERNAL);
	return sw_final(p, SW_LAYER_ENCAP, SW_TO_TUNNEL, hop->vni);
}
#else
SW_INLINE int sw_to_uplink(struct __sk_buff *skb, struct sw_packet *p, const struct sw_nexthop *hop,
			   const struct sw_addr *destination)
{
	int on_link = sw_zero_address(&hop->address);
	const struct sw_addr *address = on_link ? destination : &hop->address;
	struct bpf_redir_neigh neighbour = {};

	if (hop->vni)
		return sw_to_vlan(skb, p, hop->ifindex, hop->vni);
	skb->mark = SW_MARK | (p->arrival == SW_FROM_POD ? p->port_flags & SW_PORT_SOURCE_MAC : 0);
	if (p->keep_frame)
		return bpf_redirect(hop->ifindex, 0);
	if ((on_link ? p->family : hop->family) == 4) {
		neighbour.nh_family = AF_INET;
		neighbour.ipv4_nh = *(__be32 *)address->b;
	} else {
		neighbour.nh_family = AF_INET6;
		__builtin_memcpy(neighbour.ipv6_nh, address->b, 16);
	}
	return bpf_redirect_neigh(hop->ifindex, &neighbour, sizeof(neighbour), 0);
}

/* Not inline: the key would stand on the stack of all that may come here, and those chains are long. */
static __noinline int sw_to_tunnel(struct __sk_buff *skb, struct sw_packet *p, const struct sw_nexthop *hop)
{
	struct sw_config *config = sw_config_here();
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_DONT_FRAGMENT;

	if (!config || sw_set_macs(skb, hop->mac, config->tunnel_mac))
		return sw_drop(p, SW_LAYER_ENCAP, SW_REASON_INTERNAL);
	key.tunnel_id = hop->vni;
	key.tunnel_ttl = 64;
	if (hop->family == 4) {
		key.remote_ipv4 = bpf_ntohl(*(__be32 *)hop->address.b);
		key.local_ipv4 = bpf_ntohl(*(__be32 *)hop->local.b);
		flags |= BPF_F_ZERO_CSUM_TX; /* over IPv6 there must be one */
	} else {
		__builtin_memcpy(key.remote_ipv6, hop->address.b, 16);
		__builtin_memcpy(key.local_ipv6, hop->local.b, 16);
		flags |= BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return sw_drop(p, SW_LAYER_ENCAP, SW_REASON_INTERNAL);
	return bpf_redirect(config->tunnel_ifindex, 0);
}
#endif

/* Whether an address is that of an endpoint here which is not the sender. */
SW_COLD static __noinline int sw_is_another_endpoint(struct sw_packet *p, const struct sw_addr *address)
{
	struct sw_endpoint *owner = sw_find_endpoint(p->scope, p->family, address);

	return owner && owner->port && owner->port != p->port_id;
}

/*
 * By lo, which alone takes what is from the node itself: what it has said to itself, and what it is answered to that. Nobody
 * else may say that it is the node or an endpoint here: not by a flow of the node's, nor in an error about what has gone
 * to them, either.
 */
SW_COLD static __noinline int sw_to_lo(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_addr none = {};

	if (p->arrival != SW_FROM_HOST) {
		if (sw_is_node(p->family, &p->tuple.source) || sw_is_another_endpoint(p, &p->tuple.source))
			return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_IP);
		if (p->icmp_error && (sw_is_node(p->family, &p->first.destination) ||
				      sw_is_another_endpoint(p, &p->first.destination)))
			return sw_drop(p, SW_LAYER_GUARD, SW_REASON_SPOOFED_IP);
	}
	if (sw_set_macs(skb, none.b, none.b))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
#ifdef TRACE
	return sw_final(p, SW_LAYER_L2, SW_TO_HOST, SW_LOOPBACK);
#else
	return bpf_redirect(SW_LOOPBACK, BPF_F_INGRESS);
#endif
}

static __noinline int sw_to_host(struct __sk_buff *skb, struct sw_packet *p, __u32 device)
{
	struct sw_config *config = sw_config_here();

	if (device == SW_LOOPBACK)
		return sw_to_lo(skb, p);
	if (p->arrival == SW_FROM_UPLINK) { /* of a service: the node's answer must be told from its other packets */
		struct sw_cursors *cursors = sw_cursors_here();

		if (cursors && !cursors->host_replies)
			cursors->host_replies = 1;
		return SW_PASS;
	}
	if (!config || sw_set_macs(skb, config->host_mac, config->host_peer_mac))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
#ifdef TRACE
	return sw_final(p, SW_LAYER_L2, SW_TO_HOST, config->host_ifindex);
#else
	return bpf_redirect(config->host_ifindex, BPF_F_INGRESS);
#endif
}

SW_COLD static __noinline int sw_to_ingress(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_config *config = sw_config_here();

	if (!config)
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
	if (p->arrival == SW_FROM_UPLINK) /* once round is enough: this would go on for ever */
		return sw_drop(p, SW_LAYER_FLOW, SW_REASON_MARTIAN);
	if (sw_set_mac(skb, 0, config->uplink_mac))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
#ifdef TRACE
	return sw_final(p, SW_LAYER_L2, SW_TO_INGRESS, config->uplink_ifindex);
#else
	return bpf_redirect(config->uplink_ifindex, BPF_F_INGRESS);
#endif
}

/*
 * Transposes the packet and sends it on its way. port (SW_TO_PORT) and hop (SW_TO_UPLINK, SW_TO_TUNNEL) are the
 * action's target, looked up by the caller, who had to check them anyway. hot: every packet comes this way.
 */
SW_INLINE int sw_apply(struct __sk_buff *skb, struct sw_packet *p, const struct sw_action *action,
		       const struct sw_port *port, const struct sw_nexthop *hop, int hot)
{
	int reason;

	if (hop && sw_wire_length(skb, p) > hop->mtu) {
		p->limit_mtu = hop->mtu;
		return sw_answer_too_big(skb);
	}
	/* What leaves through the host end's queue must fit its device; redirect_peer does not ask. */
	if (port && port->flags & SW_PORT_CAP_IN && !skb->gso_size && skb->len - SW_L3 > port->mtu) {
		p->limit_mtu = port->mtu;
		return sw_answer_too_big(skb);
	}
	if (action->flags & SW_DECREMENT) {
		if (p->ttl <= 1)
			return sw_answer_time_exceeded(skb);
		if (sw_decrement_ttl(skb, p))
			return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_INTERNAL);
	}
	if (action->flags & (SW_REWRITE_SOURCE | SW_REWRITE_DESTINATION)) {
		reason = hot ? sw_rewrite_inline(skb, p, action) : sw_rewrite(skb, p, action);
		if (reason)
			return sw_drop(p, SW_LAYER_NAT, reason);
	}
	if (action->fate == SW_TO_PORT && port)
		return sw_to_port(skb, p, action->target, port);
	if (action->fate == SW_TO_UPLINK && hop)
		return sw_to_uplink(skb, p, hop,
				    action->flags & SW_REWRITE_DESTINATION ? &action->destination :
									     &p->tuple.destination);
	if (action->fate == SW_TO_TUNNEL && hop)
		return sw_to_tunnel(skb, p, hop);
	if (action->fate == SW_TO_HOST)
		return sw_to_host(skb, p, action->target);
	if (action->fate == SW_TO_INGRESS)
		return sw_to_ingress(skb, p);
	return sw_drop(p, SW_LAYER_L2, SW_REASON_INTERNAL);
}

/* Applies p->chosen to the packet in hand. */
__noinline int sw_finish(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_nexthop *hop = 0;
	struct sw_port *port = 0;

	if (!p)
		return TC_ACT_SHOT;
	switch (p->chosen.fate) {
	case SW_TO_PORT:
		port = sw_find_port(p->chosen.target);
		if (!port)
			return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT);
		break;
	case SW_TO_UPLINK:
	case SW_TO_TUNNEL:
		hop = sw_find_nexthop(p->chosen.target);
		if (!hop)
			return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_NEXTHOP);
		break;
	case SW_TO_HOST:
	case SW_TO_INGRESS:
		break;
	default:
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	}
	return sw_apply(skb, p, &p->chosen, port, hop, 0);
}

#endif /* SAMEWIRE_DELIVER_H */
