/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * hostsocket.h - the node's own processes reach services and host ports at the socket.
 *
 * connect() and sendmsg() to a VIP, or to a NodePort or host port on any address of the node or on loopback, go straight
 * to the backend's or endpoint's address; getpeername() and recvmsg() show what the application asked for. SCTP has no such
 * hooks: uplink_out.h.
 */
#ifndef SAMEWIRE_HOSTSOCKET_H
#define SAMEWIRE_HOSTSOCKET_H

#include "choose.h"
#include "tables.h"

#ifndef TRACE

#define SW_SOCKET_OK 1 /* verdict: carry on with the call */
#define SW_SOCKET_NO 0
#define SW_ECONNREFUSED 111

struct sw_target {
	struct sw_addr address;
	__be16 port;
	__u8 family; /* of address: 4 also for an IPv4-mapped IPv6 one */
	__u8 protocol;
};

SW_INLINE int sw_is_mapped(const __u32 *ip6)
{
	return !ip6[0] && !ip6[1] && ip6[2] == bpf_htonl(0xffff);
}

SW_INLINE void sw_read_target(struct bpf_sock_addr *context, struct sw_target *target, int socket_family)
{
	__u32 ip6[4];

	__builtin_memset(target, 0, sizeof(*target));
	target->port = (__be16)context->user_port;
	target->protocol = context->protocol;
	if (socket_family == 4) {
		target->family = 4;
		sw_set_ipv4(&target->address, context->user_ip4);
		return;
	}
	ip6[0] = context->user_ip6[0];
	ip6[1] = context->user_ip6[1];
	ip6[2] = context->user_ip6[2];
	ip6[3] = context->user_ip6[3];
	if (sw_is_mapped(ip6)) {
		target->family = 4;
		sw_set_ipv4(&target->address, ip6[3]);
	} else {
		target->family = 6;
		__builtin_memcpy(target->address.b, ip6, 16);
	}
}

SW_INLINE void sw_write_target(struct bpf_sock_addr *context, const struct sw_addr *address, __be16 port,
			       int socket_family, int family)
{
	const __u32 *word = (const __u32 *)address->b;

	context->user_port = port;
	if (socket_family == 4) {
		context->user_ip4 = word[0];
	} else if (family == 4) {
		context->user_ip6[0] = 0;
		context->user_ip6[1] = 0;
		context->user_ip6[2] = bpf_htonl(0xffff);
		context->user_ip6[3] = word[0];
	} else {
		context->user_ip6[0] = word[0];
		context->user_ip6[1] = word[1];
		context->user_ip6[2] = word[2];
		context->user_ip6[3] = word[3];
	}
}

/*
 * The cgroup may hold pods' processes too. They are none of our business here: their loopback is their own, and what
 * they send is balanced where it enters the switch.
 */
SW_INLINE int sw_is_node_socket(struct bpf_sock_addr *context)
{
	struct sw_config *config = sw_config_here();

	return !config || !config->netns || (__u32)bpf_get_netns_cookie(context) == config->netns;
}

SW_INLINE void sw_socket_name(struct sw_socket_key *key, __u64 cookie, const struct sw_target *target,
			      const struct sw_addr *address, __be16 port)
{
	key->cookie = cookie;
	sw_copy_address(&key->address, address);
	key->port = port;
	key->family = target->family;
	key->protocol = target->protocol;
	key->reserved = 0;
}

/* Notes what the application asked for, under the address it gets instead. Returns 0 if that is done. */
static __noinline int sw_socket_note(__u64 cookie, const struct sw_target *target, const struct sw_addr *address,
				     __be16 port, __u32 backend)
{
	struct sw_socket original = { .port = target->port, .family = target->family, .backend = backend };
	struct sw_socket_key key;

	sw_copy_address(&original.address, &target->address);
	sw_socket_name(&key, cookie, target, address, port);
	return bpf_map_update_elem(&sw_sockets, &key, &original, BPF_ANY) != 0;
}

/*
 * The backend that a socket's datagrams to this VIP have gone to so far, while it is there. What it answers is for the
 * VIP that was asked last: the socket may have come to the same backend by another one since.
 */
static __noinline struct sw_backend *sw_socket_recall(__u64 cookie, const struct sw_target *target)
{
	struct sw_backend *backend;
	struct sw_socket_key key;
	struct sw_socket *noted;
	__u32 id;

	if (target->protocol != IPPROTO_UDP)
		return 0;
	sw_socket_name(&key, cookie, target, &target->address, target->port);
	noted = bpf_map_lookup_elem(&sw_sockets, &key);
	id = noted ? noted->backend : 0;
	backend = id ? sw_find_backend(id) : 0;
	if (!backend)
		return 0;
	sw_socket_name(&key, cookie, target, &backend->address, backend->port);
	noted = bpf_map_lookup_elem(&sw_sockets, &key);
	if (!noted || noted->port != target->port || !sw_same_address(&noted->address, &target->address))
		sw_socket_note(cookie, target, &backend->address, backend->port, id);
	return backend;
}

SW_INLINE struct sw_service *sw_socket_service(const struct sw_target *target, int here)
{
	struct sw_service_key key = {
		.port = target->port,
		.protocol = target->protocol,
		.family = target->family,
	};
	struct sw_service *service;

	sw_copy_address(&key.address, &target->address);
	service = sw_find_service(&key, SW_SCOPE_HOST);
	if (service || !here)
		return service;
	__builtin_memset(&key.address, 0, sizeof(key.address));
	return sw_find_service(&key, SW_SCOPE_HOST);
}

/* Source ranges hold for the node as for everybody: by its own address on the underlay. */
static __noinline int sw_socket_may(const struct sw_target *target, const struct sw_service *service)
{
	struct sw_config *config = sw_config_here();
	struct sw_source_range_key key = {
		.prefix_bits = 64 + (target->family == 4 ? 32 : 128),
		.service = service->service,
		.family = target->family,
	};

	if (!(service->flags & SW_SERVICE_SOURCE_RANGES) || !config)
		return 1;
	sw_copy_address(&key.address, target->family == 4 ? &config->address[0] : &config->address[1]);
	return bpf_map_lookup_elem(&sw_source_ranges, &key) != 0;
}

/* Chooses a backend and remembers it. 0: there is none. */
static __noinline struct sw_backend *sw_socket_choose(__u64 cookie, const struct sw_target *target,
						      const struct sw_service *service)
{
	__u32 hash, chosen, how = SW_CHOICE_HASH;
	struct sw_addr node = {};
	struct sw_backend *backend;

	hash = service->flags & (SW_SERVICE_BY_CLIENT | SW_SERVICE_BY_PROTOCOL) ?
		       sw_hash_client(&node, &target->address, service->flags, target->protocol) :
		       bpf_get_prandom_u32();
	chosen = sw_choose(service, &node, target->family, hash, &how);
	backend = chosen ? sw_find_backend(chosen) : 0;
	sw_count_service(service->service, backend ? SW_COUNT_CONNECTION : SW_COUNT_REFUSED);
	if (!backend || sw_socket_note(cookie, target, &backend->address, backend->port, chosen))
		return 0;
	if (target->protocol == IPPROTO_UDP)
		sw_socket_note(cookie, target, &target->address, target->port, chosen);
	return backend;
}

SW_INLINE int sw_socket_forward(struct bpf_sock_addr *context, int socket_family)
{
	struct sw_service *service;
	struct sw_backend *backend;
	struct sw_portmap *map;
	struct sw_target target;
	__u64 cookie;
	int here;

	sw_read_target(context, &target, socket_family);
	if ((target.protocol != IPPROTO_TCP && target.protocol != IPPROTO_UDP) || !sw_is_node_socket(context))
		return SW_SOCKET_OK;
	here = sw_is_node(target.family, &target.address);
	service = sw_socket_service(&target, here);
	cookie = bpf_get_socket_cookie(context);
	if (service) {
		if (!sw_socket_may(&target, service)) {
			sw_count_service(service->service, SW_COUNT_REFUSED);
			return SW_SOCKET_NO;
		}
		backend = sw_socket_recall(cookie, &target) ?: sw_socket_choose(cookie, &target, service);
		if (backend) {
			sw_write_target(context, &backend->address, backend->port, socket_family, target.family);
			return SW_SOCKET_OK;
		}
		if (service->flags & SW_SERVICE_REJECT)
			bpf_set_retval(-SW_ECONNREFUSED);
		return SW_SOCKET_NO;
	}
	map = sw_find_portmap(target.family, target.protocol, &target.address, target.port, here);
	if (!map || !sw_is_mapped_for_node(map, target.family) ||
	    sw_socket_note(cookie, &target, &map->address, map->internal_port, 0))
		return SW_SOCKET_OK;
	sw_write_target(context, &map->address, map->internal_port, socket_family, target.family);
	return SW_SOCKET_OK;
}

SW_INLINE int sw_socket_backward(struct bpf_sock_addr *context, int socket_family)
{
	struct sw_socket_key key = {};
	struct sw_socket *original;
	struct sw_target target;

	sw_read_target(context, &target, socket_family);
	key.cookie = bpf_get_socket_cookie(context);
	sw_copy_address(&key.address, &target.address);
	key.port = target.port;
	key.family = target.family;
	key.protocol = target.protocol;
	original = bpf_map_lookup_elem(&sw_sockets, &key);
	if (original)
		sw_write_target(context, &original->address, original->port, socket_family, original->family);
	return SW_SOCKET_OK;
}

#define SW_SOCKET_PROGRAM(section, name, function, family) \
	SEC(section)                                       \
	int name(struct bpf_sock_addr *context)            \
	{                                                  \
		return function(context, family);          \
	}

SW_SOCKET_PROGRAM("cgroup/connect4", sw_connect4, sw_socket_forward, 4)
SW_SOCKET_PROGRAM("cgroup/connect6", sw_connect6, sw_socket_forward, 6)
SW_SOCKET_PROGRAM("cgroup/sendmsg4", sw_sendmsg4, sw_socket_forward, 4)
SW_SOCKET_PROGRAM("cgroup/sendmsg6", sw_sendmsg6, sw_socket_forward, 6)
SW_SOCKET_PROGRAM("cgroup/recvmsg4", sw_recvmsg4, sw_socket_backward, 4)
SW_SOCKET_PROGRAM("cgroup/recvmsg6", sw_recvmsg6, sw_socket_backward, 6)
SW_SOCKET_PROGRAM("cgroup/getpeername4", sw_getpeername4, sw_socket_backward, 4)
SW_SOCKET_PROGRAM("cgroup/getpeername6", sw_getpeername6, sw_socket_backward, 6)

#endif /* !TRACE */
#endif /* SAMEWIRE_HOSTSOCKET_H */
