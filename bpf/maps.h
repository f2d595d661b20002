/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * maps.h - the tables of the switch. Keys, values, writers and readers are described in layout.h.
 *
 * The traced build (TRACE=1) declares the same maps, is loaded on the pinned ones, and never writes them.
 */
#ifndef SAMEWIRE_MAPS_H
#define SAMEWIRE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

#define SW_MAP(name, map_type, key_type, value_type, entries, flags) \
	struct {                                                     \
		__uint(type, map_type);                              \
		__uint(max_entries, entries);                        \
		__uint(map_flags, flags);                            \
		__type(key, key_type);                               \
		__type(value, value_type);                           \
	} name SEC(".maps")

SW_MAP(sw_config, BPF_MAP_TYPE_ARRAY, __u32, struct sw_config, 1, 0);
SW_MAP(sw_ports, BPF_MAP_TYPE_HASH, __u32, struct sw_port, SW_MAX_PORTS, 0);
SW_MAP(sw_changes, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);
SW_MAP(sw_endpoints, BPF_MAP_TYPE_HASH, struct sw_endpoint_key, struct sw_endpoint, SW_MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
SW_MAP(sw_routes, BPF_MAP_TYPE_LPM_TRIE, struct sw_route_key, struct sw_route, SW_MAX_ROUTES, BPF_F_NO_PREALLOC);
SW_MAP(sw_own_routes, BPF_MAP_TYPE_LPM_TRIE, struct sw_own_route_key, struct sw_route, SW_MAX_OWN_ROUTES, BPF_F_NO_PREALLOC);
SW_MAP(sw_source_macs, BPF_MAP_TYPE_HASH, __u32, struct sw_source_mac, SW_MAX_PORTS, BPF_F_NO_PREALLOC);
SW_MAP(sw_neighbours, BPF_MAP_TYPE_LPM_TRIE, struct sw_route_key, struct sw_neighbour_entry, SW_MAX_NEIGHBOURS, BPF_F_NO_PREALLOC);
SW_MAP(sw_nexthops, BPF_MAP_TYPE_HASH, __u32, struct sw_nexthop, SW_MAX_NEXTHOPS, BPF_F_NO_PREALLOC);
SW_MAP(sw_portmaps, BPF_MAP_TYPE_HASH, struct sw_portmap_key, struct sw_portmap, SW_MAX_PORTMAPS, BPF_F_NO_PREALLOC);
SW_MAP(sw_services, BPF_MAP_TYPE_HASH, struct sw_service_key, struct sw_service, SW_MAX_SERVICES, BPF_F_NO_PREALLOC);
SW_MAP(sw_backend_sets, BPF_MAP_TYPE_HASH, struct sw_backend_chunk_key, struct sw_backend_chunk, SW_MAX_BACKEND_CHUNKS, BPF_F_NO_PREALLOC);
SW_MAP(sw_backends, BPF_MAP_TYPE_HASH, __u32, struct sw_backend, SW_MAX_BACKENDS, BPF_F_NO_PREALLOC);
SW_MAP(sw_source_ranges, BPF_MAP_TYPE_LPM_TRIE, struct sw_source_range_key, __u32, SW_MAX_SOURCE_RANGES, BPF_F_NO_PREALLOC);
SW_MAP(sw_direct, BPF_MAP_TYPE_HASH, struct sw_direct_key, struct sw_portmap, SW_MAX_DIRECT, BPF_F_NO_PREALLOC);
SW_MAP(sw_affinity, BPF_MAP_TYPE_LRU_HASH, struct sw_affinity_key, struct sw_affinity, SW_MAX_AFFINITY, 0);
SW_MAP(sw_service_counts, BPF_MAP_TYPE_PERCPU_HASH, __u32, struct sw_service_count, SW_MAX_SERVICE_COUNTS, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_prefixes, BPF_MAP_TYPE_LPM_TRIE, struct sw_acl_prefix_key, __u64, SW_MAX_ACL_PREFIXES, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_ports, BPF_MAP_TYPE_LPM_TRIE, struct sw_acl_port_key, __u64, SW_MAX_ACL_PORTS, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_vectors, BPF_MAP_TYPE_HASH, __u64, struct sw_acl_vector, SW_MAX_ACL_VECTORS, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_any, BPF_MAP_TYPE_HASH, struct sw_acl_any_key, struct sw_acl_vector, SW_MAX_ACL_ANY, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_sets, BPF_MAP_TYPE_HASH, struct sw_acl_set_key, __u64, SW_MAX_ACL_SETS, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_rules, BPF_MAP_TYPE_HASH, struct sw_acl_rule_key, struct sw_acl_rule, SW_MAX_ACL_RULES, BPF_F_NO_PREALLOC);
SW_MAP(sw_rule_counts, BPF_MAP_TYPE_PERCPU_HASH, struct sw_rule_count_key, __u64, SW_MAX_RULE_COUNTS, BPF_F_NO_PREALLOC);
SW_MAP(sw_set_members, BPF_MAP_TYPE_LPM_TRIE, struct sw_acl_prefix_key, __u64, SW_MAX_SET_MEMBERS, BPF_F_NO_PREALLOC);
SW_MAP(sw_set_classes, BPF_MAP_TYPE_HASH, struct sw_set_class_key, struct sw_set_class, SW_MAX_SET_CLASSES, BPF_F_NO_PREALLOC);
SW_MAP(sw_acl_spaces, BPF_MAP_TYPE_HASH, __u64, struct sw_acl_space, SW_MAX_SET_SPACES, BPF_F_NO_PREALLOC);
SW_MAP(sw_nat, BPF_MAP_TYPE_LPM_TRIE, struct sw_nat_key, struct sw_nat, SW_MAX_NAT_PREFIXES, BPF_F_NO_PREALLOC);
SW_MAP(sw_vnis, BPF_MAP_TYPE_HASH, __u32, struct sw_vni, SW_MAX_VNIS, BPF_F_NO_PREALLOC);
SW_MAP(sw_flows, BPF_MAP_TYPE_HASH, struct sw_flow_key, struct sw_flow, SW_MAX_FLOWS, 0);
SW_MAP(sw_flow_slots, BPF_MAP_TYPE_ARRAY, __u32, struct sw_flow_key, 2 * SW_MAX_FLOWS, 0);
SW_MAP(sw_flow_counts, BPF_MAP_TYPE_ARRAY, __u32, struct sw_flow_count, 1, 0);
SW_MAP(sw_cursors, BPF_MAP_TYPE_ARRAY, __u32, struct sw_cursors, 1, 0);
SW_MAP(sw_fragments, BPF_MAP_TYPE_LRU_HASH, struct sw_fragment_key, struct sw_fragment, SW_MAX_FRAGMENTS, 0);
SW_MAP(sw_drops, BPF_MAP_TYPE_PERCPU_HASH, struct sw_drop_key, __u64, SW_MAX_DROP_KINDS, BPF_F_NO_PREALLOC);
SW_MAP(sw_counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, SW_COUNTER_MAX, 0);
SW_MAP(sw_buckets, BPF_MAP_TYPE_HASH, __u32, struct sw_bucket, SW_MAX_PORTS, BPF_F_NO_PREALLOC);
SW_MAP(sw_sockets, BPF_MAP_TYPE_LRU_HASH, struct sw_socket_key, struct sw_socket, SW_MAX_SOCKETS, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} sw_events SEC(".maps");

#ifdef TRACE
SW_MAP(sw_trace_input, BPF_MAP_TYPE_ARRAY, __u32, struct sw_trace_input, 1, 0);
SW_MAP(sw_trace_output, BPF_MAP_TYPE_ARRAY, __u32, struct sw_trace_output, 1, 0);
#endif

#endif /* SAMEWIRE_MAPS_H */
