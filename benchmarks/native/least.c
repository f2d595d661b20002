// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The least that can stand between a pod and the outside: two programs that know where everything goes. No look-up by
 * address, no state, no policy, no translation. What it reaches of a peer is the most that any switch with this path
 * could.
 *
 * `out` is attached to the ingress of the host end of the pod's veth, `back` to that of the node's NIC. The outside
 * host has a route to the pod.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2

struct way {
	__u32 nic;     /* ifindex of the node's NIC */
	__u32 port;    /* ifindex of the host end of the pod's veth */
	__u32 gateway; /* IPv4 addresses, network order */
	__u32 pod;
	__u8 pod_mac[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct way);
} ways SEC(".maps");

static __always_inline struct way *the_way(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ways, &zero);
}

SEC("tc")
int out(struct __sk_buff *skb)
{
	struct bpf_redir_neigh hop = { .nh_family = AF_INET };
	struct way *way = the_way();

	if (!way || skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_OK;
	hop.ipv4_nh = way->gateway;
	return bpf_redirect_neigh(way->nic, &hop, sizeof(hop), 0);
}

SEC("tc")
int back(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct way *way = the_way();

	if (!way || (void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->daddr != way->pod)
		return TC_ACT_OK;
	__builtin_memcpy(eth->h_dest, way->pod_mac, ETH_ALEN);
	return bpf_redirect_peer(way->port, 0);
}

char _license[] SEC("license") = "GPL";
