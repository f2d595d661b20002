// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * switch.c - the programs of the switch. See docs/switch.md for the picture.
 *
 *   sw_ingress      tc ingress of a pod's host end       what pods send
 *                   tcx/tc ingress of the uplink         what the underlay sends
 *                   tc ingress of swvxlan0               decapsulated frames
 *                   tc ingress of samewire1              what the node sends to pods
 *   sw_uplink_out   tcx/tc egress of the uplink          watches for host sockets that use a port of the NAT pool
 *                   and of lo                            SCTP from the node to itself, while that is somebody's
 *   sw_start_ageing run once, by PROG_TEST_RUN           starts the ageing timer, which then needs no process
 *   sw_connect4...  cgroup                               host sockets to host ports (hostsocket.h)
 *   sw_trace        PROG_TEST_RUN, TRACE=1 build         all of the above on the live tables, read-only
 *
 * All that arrives shares one program, which knows the device by its index: a program each would be the same code, to be
 * verified four times.
 */
#include "bucket.h"
#include "connect.h"
#include "fragment.h"
#include "guard.h"
#include "hostsocket.h"
#include "icmp_error.h"
#include "neighbour.h"
#include "parse.h"

char _license[] SEC("license") = "Dual BSD/GPL";

SW_INLINE void sw_arrive(struct sw_packet *p, __u8 arrival, __u16 scope, __u32 device, __u32 port_id)
{
	p->arrival = arrival;
	p->scope = scope;
	p->device = device;
	p->port_id = port_id;
	p->keep_frame = 0;
}

/* The part that all arrivals share, once the packet is parsed and its scope known. */
SW_INLINE int sw_go(struct __sk_buff *skb, struct sw_packet *p)
{
	if (p->fragment && sw_fragment(p) == SW_UNKNOWN)
		return sw_drop(p, SW_LAYER_FRAGMENT, SW_REASON_FRAGMENT_UNKNOWN);
	if (p->icmp_error) {
		int verdict = sw_icmp_error(skb);

		if (verdict != SW_GO_ON)
			return verdict;
	}
	return sw_switch(skb, p);
}

/* Before it is known whose packet it is: parsed once for all. Returns 0 or a reason; ARP is none of IP. */
SW_INLINE int sw_take(struct __sk_buff *skb, struct sw_packet *p)
{
	__u32 *changes = sw_changes_here();

	if (!changes)
		return SW_REASON_INTERNAL;
	p->changes = *changes;
	p->family = 0; /* until its addresses are read: a drop must not be told with those of the packet before */
	return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_ARP) ? SW_REASON_NOT_IP : sw_parse(skb, p);
}

/* Each arrival's own part: SW_GO_ON, or a verdict. reason: why it could not be parsed. */
SW_INLINE int sw_from_pod(struct __sk_buff *skb, struct sw_packet *p, __u32 ifindex, int reason)
{
	const struct sw_port *port = sw_near_port(p, ifindex);
	int verdict;

	sw_arrive(p, SW_FROM_POD, 0, ifindex, ifindex);
	if (!port)
		return sw_drop(p, SW_LAYER_PARSE, SW_REASON_UNKNOWN_PORT);
	p->port_generation = port->generation;
	p->scope = port->scope;
	p->port_flags = port->flags;
	if (port->flags & SW_PORT_BLOCKED)
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_PORT_BLOCKED);
	if (skb->vlan_present) /* the tag would go out on the underlay, to whatever VLAN the pod has named */
		return sw_drop(p, SW_LAYER_PARSE, SW_REASON_NOT_IP);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return sw_arp(skb, p, port);
	if (reason)
		return sw_drop(p, SW_LAYER_PARSE, reason);
	verdict = sw_guard(skb, p, port);
	if (verdict != SW_GO_ON)
		return verdict;
	if (p->neighbour)
		return sw_neighbour(skb, p, port);
	if (sw_is_multicast(p) || sw_is_broadcast_frame(skb, port))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_MULTICAST);
	if (sw_is_martian(p))
		return sw_drop(p, SW_LAYER_GUARD, SW_REASON_MARTIAN);
	if (port->flags & SW_PORT_CAP_OUT && sw_police(skb, p) != SW_GO_ON)
		return TC_ACT_SHOT;
	if (port->flags & SW_PORT_TRANSPARENT) {
		void *data = (void *)(long)skb->data;

		if (data + ETH_HLEN > (void *)(long)skb->data_end)
			return sw_drop(p, SW_LAYER_PARSE, SW_REASON_MALFORMED);
		p->keep_frame = !(port->flags & SW_PORT_TAGGED) && !sw_same_mac(data, port->gateway_mac);
	}
	return SW_GO_ON;
}

/*
 * A frame with a tag (SW_VLAN and the id): whose it is. It keeps the tag until it is delivered to a pod, so what goes to
 * the node's own stack or back to the wire has it. Returns 0, a reason, or SW_PASS: of no network here. Global: verified
 * once.
 */
SW_COLD __noinline int sw_take_tagged(struct __sk_buff *skb, __u32 tag)
{
	struct sw_packet *p = sw_packet_here();
	__u32 of_node = SW_VLAN_NODE | (tag & SW_VLAN_ID), any = SW_VLAN_NODE | SW_VLAN_ID;
	struct sw_vni *found;
	int reason;

	SW_USE_CONTEXT(skb);
	if (!p)
		return SW_PASS;
#ifndef TRACE
	if (skb->vlan_proto != bpf_htons(ETH_P_8021Q)) /* a provider's tag: another one is inside */
		return SW_PASS;
#endif
	if (tag & SW_VLAN_ID) {
		found = bpf_map_lookup_elem(&sw_vnis, &tag);
		if (!found) {
			if (!bpf_map_lookup_elem(&sw_vnis, &of_node) && bpf_map_lookup_elem(&sw_vnis, &any))
				sw_drop(p, SW_LAYER_DECAP, SW_REASON_OTHER_VLAN);
			return SW_PASS;
		}
		p->scope = found->scope;
	}
	reason = skb->protocol == bpf_htons(ETH_P_ARP) ? 0 : sw_parse(skb, p);
#ifndef TRACE
	/* A priority and no VLAN: as if it had none. Not where another tag is inside, which would come to the front. */
	if (!reason && !(tag & SW_VLAN_ID) && bpf_skb_vlan_pop(skb))
		return SW_PASS;
#endif
	return reason;
}

/* tag: SW_VLAN and the frame's VLAN, 0 without one. */
SW_INLINE int sw_from_uplink(struct __sk_buff *skb, struct sw_packet *p, const struct sw_config *config, __u32 ifindex,
			     __u32 tag, int reason)
{
	sw_arrive(p, SW_FROM_UPLINK, SW_SCOPE_UPLINK, ifindex, 0);
	if (tag) {
		reason = sw_take_tagged(skb, tag);
		if (reason == SW_PASS)
			return SW_PASS;
	}
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return sw_arp(skb, p, 0);
	if (reason)
		return SW_PASS; /* the node's own stack knows what to do with it */
	if (p->neighbour)
		return sw_neighbour(skb, p, 0);
	/* The tunnel's outer packets: straight to the VXLAN device. */
	if (p->protocol == IPPROTO_UDP && p->tuple.destination_port == config->vxlan_port && !p->fragment &&
	    p->scope == SW_SCOPE_UPLINK)
		return SW_PASS;
	if (sw_is_multicast(p) || sw_is_anothers(skb, p, config))
		return SW_PASS;
	/* Ours only if its first was; the node reassembles its own. */
	if (p->fragment == SW_FRAGMENT_LATER && sw_fragment(p) == SW_UNKNOWN &&
	    !sw_is_local_address(p->scope, p->family, &p->tuple.destination))
		return SW_PASS;
	return SW_GO_ON;
}

SW_INLINE int sw_from_tunnel(struct __sk_buff *skb, struct sw_packet *p, __u32 ifindex, __u32 vni, int reason)
{
	struct sw_vni *found = bpf_map_lookup_elem(&sw_vnis, &vni);
	void *data = (void *)(long)skb->data;

	sw_arrive(p, SW_FROM_TUNNEL, 0, ifindex, 0);
	p->tunnel_vni = vni;
	if (data + ETH_HLEN <= (void *)(long)skb->data_end)
		sw_copy_mac(p->inner_mac, data);
	if (!found)
		return sw_drop(p, SW_LAYER_DECAP, SW_REASON_UNKNOWN_VNI);
	p->scope = found->scope;
	if (reason)
		return sw_drop(p, SW_LAYER_PARSE, reason);
	if (p->neighbour || sw_is_multicast(p))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_MULTICAST);
	if (sw_is_martian(p))
		return sw_drop(p, SW_LAYER_DECAP, SW_REASON_MARTIAN);
	return SW_GO_ON;
}

SW_INLINE int sw_from_host(struct sw_packet *p, __u32 ifindex, int reason)
{
	struct sw_route *route;

	sw_arrive(p, SW_FROM_HOST, 0, ifindex, 0);
	if (reason)
		return sw_drop(p, SW_LAYER_PARSE, reason);
	if (p->neighbour || sw_is_multicast(p))
		return sw_drop(p, SW_LAYER_L2, SW_REASON_MULTICAST);
	route = sw_find_route(SW_SCOPE_HOST, p->family, &p->tuple.destination);
	p->scope = route && route->kind == SW_ROUTE_SCOPE ? route->scope : SW_SCOPE_HOST; /* of no network: a VIP */
	return SW_GO_ON;
}

#ifndef TRACE

SW_INLINE __u32 sw_tag_of(struct __sk_buff *skb)
{
	return skb->vlan_present ? SW_VLAN | (skb->vlan_tci & SW_VLAN_ID) : 0;
}

SW_INLINE int sw_from_vxlan(struct __sk_buff *skb, struct sw_packet *p, __u32 ifindex, int reason)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) &&
	    bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		sw_arrive(p, SW_FROM_TUNNEL, 0, ifindex, 0);
		return sw_drop(p, SW_LAYER_DECAP, SW_REASON_UNKNOWN_VNI);
	}
	return sw_from_tunnel(skb, p, ifindex, key.tunnel_id, reason);
}

/* A device that the configuration does not name is a pod's, and one that is no port either may send nothing. */
SEC("tc")
int sw_ingress(struct __sk_buff *skb)
{
	const struct sw_config *config = sw_config_here();
	struct sw_packet *p = sw_packet_here();
	__u32 ifindex = skb->ifindex;
	int reason, verdict;

	if (!p || !config)
		return TC_ACT_SHOT;
	reason = sw_take(skb, p);
	if (ifindex == config->uplink_ifindex) {
		verdict = sw_from_uplink(skb, p, config, ifindex, sw_tag_of(skb), reason);
	} else if (ifindex == config->tunnel_ifindex) {
		verdict = sw_from_vxlan(skb, p, ifindex, reason);
	} else if (ifindex == config->host_peer_ifindex) {
		verdict = sw_from_host(p, ifindex, reason);
	} else {
		verdict = sw_from_pod(skb, p, ifindex, reason);
	}
	return verdict == SW_GO_ON ? sw_go(skb, p) : verdict;
}

#include "uplink_out.h"

SEC("tc")
int sw_uplink_out(struct __sk_buff *skb)
{
	struct sw_packet *p;
	int reason;

	if (skb->mark == SW_MARK) {
		skb->mark = 0;
		return SW_PASS;
	}
	if (skb->ifindex == SW_LOOPBACK && !sw_is_sctp(skb))
		return SW_PASS;
	p = sw_packet_here();
	if (!p)
		return SW_PASS;
	reason = sw_parse(skb, p); /* once for all, before anything is known: the verifier walks it once, too */
	if (skb->mark == (SW_MARK | SW_PORT_SOURCE_MAC)) {
		skb->mark = 0;
		return reason ? SW_PASS : sw_put_source_mac(skb, p);
	}
	if (reason || skb->vlan_present)
		return SW_PASS;
	return skb->ifindex == SW_LOOPBACK ? sw_watch_loopback(skb, p) : sw_watch_host(skb, p);
}

#include "ageing.h"

#else /* TRACE */

SW_INLINE const struct sw_trace_input *sw_trace_input_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_trace_input, &zero);
}

SEC("tc")
int sw_trace(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_trace_output *out = sw_trace_here();
	const struct sw_config *config = sw_config_here();
	const struct sw_trace_input *in = sw_trace_input_here();
	int reason, verdict;

	if (!p || !out || !in || !config)
		return TC_ACT_SHOT;
	out->count = 0;
	out->fate = SW_TO_NOWHERE;
	out->drop_layer = 0;
	out->drop_reason = 0;
	out->flow_hit = 0;
	p->gone[0].family = 0;
	p->gone[1].family = 0;
	reason = sw_take(skb, p);
	switch (in->arrival) {
	case SW_FROM_POD:
		verdict = sw_from_pod(skb, p, in->ifindex, reason);
		break;
	case SW_FROM_UPLINK:
		verdict = sw_from_uplink(skb, p, config, in->ifindex, in->vni, reason);
		break;
	case SW_FROM_TUNNEL:
		verdict = sw_from_tunnel(skb, p, in->ifindex, in->vni, reason);
		break;
	case SW_FROM_HOST:
		verdict = sw_from_host(p, in->ifindex, reason);
		break;
	default:
		return TC_ACT_SHOT;
	}
	return verdict == SW_GO_ON ? sw_go(skb, p) : verdict;
}

#endif /* TRACE */
