/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * layout.h - every key and value that crosses between the switch and user space.
 *
 * The single source of all byte layouts. src/samewire/vfp/tables.py mirrors it; tests/unit/test_layout.py compares
 * the two through the compiled object's BTF. A change here needs a new SW_LAYOUT_VERSION.
 *
 * Addresses are 16 bytes for both families; an IPv4 address stands in the first four and the rest is zero. The
 * family (4 or 6) is part of every key. Ports and addresses are in network byte order unless a field says "host
 * order"; all other integers are in host order. No structure has implicit padding.
 */
#ifndef SAMEWIRE_LAYOUT_H
#define SAMEWIRE_LAYOUT_H

#include <linux/types.h>

#define SW_LAYOUT_VERSION 5

#define SW_MAX_PORTS 4096	   /* ports on one node */
#define SW_MAX_ENDPOINTS 65536	   /* local and remote endpoints, all networks */
#define SW_MAX_ROUTES 65536	   /* subnets, remote subnets, host addresses, all networks */
#define SW_MAX_OWN_ROUTES 524288   /* routes that only some endpoints obey, all sets */
#define SW_MAX_NEIGHBOURS 4096	   /* prefixes of NeighborDiscovery policies, all networks */
#define SW_MAX_NEXTHOPS 65536	   /* provider addresses and gateways, and endpoints that are reached by DSR */
#define SW_MAX_PORTMAPS 16384	   /* host ports */
#define SW_MAX_ACL_RULES 262144	   /* ACL rules of all tables */
#define SW_MAX_ACL_PREFIXES 524288 /* addresses in rules, all tables */
#define SW_MAX_ACL_PORTS 262144	   /* protocols and ports in rules, all tables */
#define SW_MAX_ACL_VECTORS 65536   /* different combinations of rules */
#define SW_MAX_ACL_SETS 65536	   /* sets named by rules, all tables */
#define SW_MAX_ACL_ANY 65536	   /* questions to which rules take any answer, all long tables */
#define SW_MAX_RULE_COUNTS 65536	   /* (port, rule) that have judged something */
#define SW_MAX_SET_MEMBERS 1048576 /* addresses in IP sets, all networks */
#define SW_MAX_SET_CLASSES 65536   /* different combinations of sets that an address is in */
#define SW_MAX_SET_SPACES 4096	   /* networks with IP sets */
#define SW_ACL_WORDS 64		   /* of a vector, 64 rules each: 4096 rules a table */
#define SW_ACL_STAGES 64	   /* tiers of a table, and the list behind them */
#define SW_CLASS_SETS 16	   /* sets in a chunk of a class */
#define SW_CLASS_CHUNKS 16	   /* 256 sets for an address */
#define SW_MAX_NAT_PREFIXES 65536  /* OutBoundNAT prefixes, all sets */
#define SW_MAX_VNIS 4096	   /* overlay subnets */
#define SW_MAX_FLOWS 131072	   /* default; the daemon sets it at load */
#define SW_MAX_FRAGMENTS 8192	   /* datagrams being reassembled somewhere behind us */
#define SW_MAX_DROP_KINDS 16384	   /* (port, layer, rule, reason) that have dropped something */
#define SW_MAX_SOCKETS 65536	   /* host sockets redirected to a host port */
#define SW_MAX_SERVICES 262144	   /* VIP and port, all scopes */
#define SW_MAX_BACKENDS 524288	   /* backends of all services */
#define SW_MAX_BACKEND_CHUNKS 131072 /* of all backend sets */
#define SW_CHUNK_BACKENDS 16	   /* places in a chunk */
#define SW_MAX_AFFINITY 65536	   /* clients that are to stay with their backend */
#define SW_MAX_SOURCE_RANGES 65536 /* loadBalancerSourceRanges, all services */
#define SW_MAX_DIRECT 65536	   /* VIPs that local endpoints answer for themselves (DSR) */
#define SW_MAX_SERVICE_COUNTS 65536 /* services that have been used */
#define SW_NAT_TRIES 64		   /* SNAT ports tried before giving up */

#define SW_SCOPE_UPLINK 0      /* addresses of the underlay: the uplink, and L2Bridge and Transparent networks */
#define SW_SCOPE_DIRECT 0xfffc /* only in sw_vnis and keys of flows: direct packets for endpoints of SW_SCOPE_UPLINK */
#define SW_SCOPE_HOST 0xffff   /* in sw_routes: which network does the host mean by an address? In sw_services: its own */
#define SW_SCOPE_OUTSIDE 0xfffe /* only in sw_services: arrivals on the uplink */
#define SW_SCOPE_ANY 0xfffd    /* only in sw_services: pods of every network, the tunnel and the host; asked last */
#define SW_SCOPE_MAX 0x7ffb    /* the last network's, so that with SW_SCOPE_ASIDE it is none of these */
#define SW_SCOPE_ASIDE 0x8000  /* bit, only in keys of flows: see sw_flows */
#define SW_TICK_SHIFT 30       /* a tick is 2^30 ns, about 1.07 s */

struct sw_addr {
	__u8 b[16];
};

enum sw_arrival {
	SW_FROM_POD = 1,
	SW_FROM_UPLINK = 2,
	SW_FROM_TUNNEL = 3,
	SW_FROM_HOST = 4,
};

/* Layers, in the order of a walk. The initiator's come first, then the target's. */
enum sw_layer {
	SW_LAYER_PARSE = 1,
	SW_LAYER_GUARD = 2,
	SW_LAYER_FLOW = 3,	/* unified flow hit */
	SW_LAYER_LB = 4,	/* VIP -> DIP */
	SW_LAYER_PORTMAP = 5,
	SW_LAYER_ACL_OUT = 6,
	SW_LAYER_NAT = 7,
	SW_LAYER_ROUTE = 8,
	SW_LAYER_ENCAP = 9,
	SW_LAYER_DECAP = 10,
	SW_LAYER_ACL_IN = 11,
	SW_LAYER_MTU = 12,
	SW_LAYER_QOS = 13,
	SW_LAYER_L2 = 14,
	SW_LAYER_FRAGMENT = 15,
	SW_LAYER_ICMP = 16,
	SW_LAYER_MAX,
};

enum sw_reason {
	SW_REASON_NONE = 0,
	SW_REASON_MALFORMED = 1,	 /* headers shorter than they say */
	SW_REASON_NOT_IP = 2,		 /* an EtherType that the switch does not carry */
	SW_REASON_SPOOFED_MAC = 3,
	SW_REASON_SPOOFED_IP = 4,
	SW_REASON_SPOOFED_ARP = 5,	 /* ARP or ND sender is not the endpoint's own */
	SW_REASON_MULTICAST = 6,	 /* multicast and broadcast are not carried on this network */
	SW_REASON_BLOCKED = 7,		 /* an ACL says Block, or no rule allows */
	SW_REASON_NO_ROUTE = 8,
	SW_REASON_NO_ENDPOINT = 9,	 /* on-link address that no endpoint owns */
	SW_REASON_NO_NEXTHOP = 10,
	SW_REASON_TTL = 11,
	SW_REASON_TOO_BIG = 12,
	SW_REASON_FLOW_TABLE_FULL = 13,
	SW_REASON_NAT_EXHAUSTED = 14,	 /* no free port in the pool for this remote end */
	SW_REASON_NAT_PROTOCOL = 15,	 /* a protocol that has nothing to tell connections apart by */
	SW_REASON_FRAGMENT_UNKNOWN = 16, /* the first fragment has not been seen */
	SW_REASON_RATE = 17,		 /* over the bandwidth cap */
	SW_REASON_UNKNOWN_VNI = 18,
	SW_REASON_UNKNOWN_PORT = 19,	 /* a device that is no port of the switch */
	SW_REASON_PORT_BLOCKED = 20,
	SW_REASON_ICMP_UNRELATED = 21,	 /* an ICMP error about a connection that is not there */
	SW_REASON_MARTIAN = 22,		 /* source equals destination, loopback or unspecified address */
	SW_REASON_INTERNAL = 23,	 /* a helper failed or a tail call was missed */
	SW_REASON_NO_BACKEND = 24,	 /* a service without endpoints, refused or dropped as it says */
	SW_REASON_SOURCE_RANGE = 25,	 /* the client is in none of the service's source ranges */
	SW_REASON_BACKEND_GONE = 26,	 /* an established connection's backend has been removed */
	SW_REASON_NO_SOURCE = 27,	 /* replies would not come back, and the service has no source address to give */
	SW_REASON_OTHER_VLAN = 28,	 /* a tag that no network here has; left to the node's own stack */
	SW_REASON_MAX,
};

/* ---- sw_config: array[1] -----------------------------------------------------------------------------------
 * Writer: daemon. Readers: all programs. Facts about the node.
 */
struct sw_config {
	__u32 layout_version;
	__u32 uplink_ifindex;
	__u32 tunnel_ifindex;	/* swvxlan0; 0 = none */
	__u32 host_ifindex;	/* samewire0 */
	__u32 host_peer_ifindex; /* samewire1 */
	__u32 flow_slots;	/* entries of sw_flow_slots, a power of two */
	__u8 uplink_mac[6];
	__u8 tunnel_mac[6];	/* = this node's DR MAC */
	__u8 host_mac[6];	/* of samewire0 */
	__u8 host_peer_mac[6];	/* of samewire1: source of what the switch hands to the host */
	__u16 nat_port_low;	/* host order, inclusive */
	__u16 nat_port_high;	/* host order, inclusive */
	__be16 vxlan_port;
	__u16 flags;		/* SW_CONFIG_* */
	/* Idle times in ticks, after which a flow is removed. */
	__u32 idle_tcp_half_open;
	__u32 idle_tcp_established;
	__u32 idle_tcp_closing;
	__u32 idle_udp_single;	/* no reply seen yet, or nothing after it: a question and its answer */
	__u32 idle_udp_stream;
	__u32 idle_icmp;
	__u32 idle_other;
	__u32 netns; /* low half of the cookie of the node's network namespace: whose sockets are its own; 0 = any */
	struct sw_addr address[2]; /* the node's on the underlay, [0] IPv4, [1] IPv6: source towards backends out there */
};

#define SW_CONFIG_CSUM_IPV6 1 /* bpf_l4_csum_replace knows BPF_F_IPV6 */
#define SW_CONFIG_EVENTS 2    /* somebody reads sw_events */

/* ---- sw_ports: hash[SW_MAX_PORTS], key: ifindex of the host end (never reused in a namespace) ---------------
 * Writer: daemon. Readers: all programs. A change of policy draws a new generation: flows of older ones are
 * re-decided on their next packet.
 */
struct sw_port {
	__u32 generation;
	__u16 scope;
	__u8 flags; /* SW_PORT_* */
	__u8 reserved;
	__u8 mac[6];	     /* the endpoint's */
	__u8 gateway_mac[6]; /* of the host end; what the switch answers for the gateway */
	struct sw_addr address[2]; /* [0] IPv4, [1] IPv6; zero = none */
	struct sw_addr gateway[2]; /* source of ICMP errors and of hairpinned connections */
	__u32 nat_set;		   /* key of sw_nat; 0 = no OutBoundNAT */
	__u64 acl_table[2];	   /* [0] in, [1] out: in the keys of sw_acl_* */
	__u64 acl_space;	   /* key of sw_acl_spaces: whose sets the rules name; 0 = they name none */
	__u64 route_set;	   /* in the keys of sw_own_routes; 0 = no routes but the network's */
	__u8 acl_words[2];	   /* of the tables' vectors; 0 = everything passes */
	__u8 acl_shape[2];	   /* SW_ACL_BY_*: what the rules ask about */
	__u32 mtu;		   /* of the endpoint's interface */
};

#define SW_PORT_BLOCKED 1     /* nothing passes (VFP: block port) */
#define SW_PORT_TRANSPARENT 2 /* keeps its own MAC on the underlay; frames leave as they are */
#define SW_PORT_CAP_IN 4      /* bandwidth cap towards the endpoint: deliver through the host end's TBF */
#define SW_PORT_CAP_OUT 8     /* bandwidth cap from the endpoint: sw_buckets */
#define SW_PORT_NO_GUARD 16   /* spoof guard off */
#define SW_PORT_NAT_EXPLICIT 32 /* nat_set has EXPLICIT prefixes: replies inside the network need a flow too */
#define SW_PORT_SOURCE_MAC 64 /* leaves by the uplink with a MAC of its own: sw_source_macs */
#define SW_PORT_TAGGED 128 /* of a network that is a VLAN of the uplink's: asks that VLAN for MACs itself */

/* ---- sw_changes: array[1] -> u32 ---------------------------------------------------------------------------------
 * Moves after every change of sw_ports, sw_acl_spaces and sw_nexthops, and after removals from sw_backends: what the
 * programs remember of those (near.h) counts for one number only. Writer: daemon. Readers: all programs.
 */

#define SW_ACL_IN 0
#define SW_ACL_OUT 1

/* ---- sw_endpoints: hash[SW_MAX_ENDPOINTS] -------------------------------------------------------------------
 * Who owns an address in a scope. Writer: daemon. Readers: all programs.
 */
struct sw_endpoint_key {
	struct sw_addr address;
	__u16 scope;
	__u8 family;
	__u8 reserved;
};

struct sw_endpoint {
	__u32 port;    /* key of sw_ports; 0 for a remote endpoint */
	__u32 nexthop; /* key of sw_nexthops for a remote endpoint */
	__u8 mac[6];
	__u8 reserved[2];
};

/* ---- sw_source_macs: hash[SW_MAX_PORTS], key: ifindex of the host end ------------------------------------------
 * With which MAC an endpoint is on the underlay, where that is not the uplink's own. Writer: daemon. Readers:
 * sw_uplink_out, and what answers the wire.
 */
struct sw_source_mac {
	__u8 mac[6];
	__u8 reserved[2];
};

/* ---- sw_neighbours: LPM trie[SW_MAX_NEIGHBOURS], key: struct sw_route_key ---------------------------------------
 * What is answered to who asks for an address of a prefix that is no endpoint's: this MAC; for IPv6 the answer comes
 * from sender. Writer: daemon. Readers: what answers ARP and neighbour discovery.
 */
struct sw_neighbour_entry {
	__u8 mac[6];
	__u8 flags; /* SW_NEIGHBOUR_* */
	__u8 reserved;
	struct sw_addr sender;
};

#define SW_NEIGHBOUR_PODS 1 /* answered to pods only: the wire has machines with these addresses */

/* ---- sw_routes: LPM trie[SW_MAX_ROUTES] ---------------------------------------------------------------------
 * Writer: daemon. Readers: all programs. prefix_bits counts scope, family and reserved (32 bits) too.
 */
struct sw_route_key {
	__u32 prefix_bits;
	__u16 scope;
	__u8 family;
	__u8 reserved;
	struct sw_addr address;
};

enum sw_route_kind {
	SW_ROUTE_LOCAL = 1,	/* on-link in this network: sw_endpoints must know the address */
	SW_ROUTE_TUNNEL = 2,	/* RemoteSubnetRoute: nexthop */
	SW_ROUTE_UPLINK = 3,	/* underlay: nexthop (gateway, or on-link when its address is zero) */
	SW_ROUTE_HOST = 4,	/* an address of the node itself */
	SW_ROUTE_SCOPE = 5,	/* only under SW_SCOPE_HOST: scope holds the network */
	SW_ROUTE_BLACKHOLE = 6,
};

struct sw_route {
	__u8 kind;
	__u8 flags; /* SW_ROUTE_* */
	__u16 scope; /* SCOPE: the network; UPLINK: what the packet is in then, the uplink's own or a VLAN's */
	__u32 nexthop;
	__u8 bits; /* of the prefix, without scope, family and reserved: sw_own_routes */
	__u8 reserved[3];
};

#define SW_ROUTE_DECREMENT 1 /* the hop is routed: TTL goes down */

/* ---- sw_own_routes: LPM trie[SW_MAX_OWN_ROUTES] -> struct sw_route ----------------------------------------------
 * Routes that only what some endpoints send obeys: their SDNRoute policies, and routes that name them. Of these and the
 * network's in sw_routes the longer holds, the endpoint's own where both are as long. Sets are named by a hash of their
 * content (>= 1 << 32): endpoints with the same routes share one, and a change is a new set, to which the port switches
 * with a new generation; very many routes by their port, and change in place, the generation last. prefix_bits counts
 * set, family and reserved (96 bits) too. Writer: daemon. Readers: first packets of ports that have a set.
 */
struct sw_own_route_key {
	__u32 prefix_bits;
	__u32 set_low; /* as in struct sw_acl_prefix_key */
	__u32 set_high;
	__u8 family;
	__u8 reserved[3];
	struct sw_addr address;
};

/* ---- sw_nexthops: hash[SW_MAX_NEXTHOPS], key: id, never reused ------------------------------------------------
 * Writer: daemon, in place when a gateway or a provider address changes. Readers: all programs.
 */
struct sw_nexthop {
	__u8 kind;   /* SW_ROUTE_TUNNEL or SW_ROUTE_UPLINK */
	__u8 family; /* of address */
	__u16 mtu;   /* largest inner IP packet that fits the path */
	__u32 ifindex;
	__u32 vni;   /* UPLINK: the VLAN's id, and the MAC is what the pod has found in it; 0: no tag */
	struct sw_addr address; /* gateway or remote provider address; zero: the packet's own destination */
	struct sw_addr local;	/* own provider address */
	__u8 mac[6];		/* inner destination: the peer's DR MAC */
	__u8 reserved[2];
};

/* ---- sw_portmaps: hash[SW_MAX_PORTMAPS] ----------------------------------------------------------------------
 * Host ports. Writer: daemon. Readers: pod, uplink and socket programs. A zero address stands for every address
 * of the node.
 */
struct sw_portmap_key {
	struct sw_addr address;
	__be16 port;
	__u8 protocol;
	__u8 family;
};

struct sw_portmap {
	__u32 port; /* key of sw_ports */
	__u16 scope;
	__be16 internal_port;
	struct sw_addr address; /* of the endpoint */
};

/* ---- sw_services: hash[SW_MAX_SERVICES] -----------------------------------------------------------------------
 * Load balancers, one entry for every VIP and port. A zero address stands for every address of the node (NodePort);
 * the host's own sockets mean loopback by it too. Asked under the scope of the arrival (a network; SW_SCOPE_OUTSIDE on
 * the uplink; SW_SCOPE_HOST for the node), then, except on the uplink, under SW_SCOPE_ANY; this very address before
 * zero. So one service may have different sets for arrivals from outside and from pods (traffic policies). Writer:
 * daemon. Readers: first packets, socket programs.
 */
struct sw_service_key {
	struct sw_addr address;
	__be16 port;
	__u8 protocol;
	__u8 family;
	__u16 scope;
	__u16 reserved;
};

struct sw_service {
	__u32 service;	      /* id, never reused: in counters, drops, traces, and key of sw_source_ranges */
	__u32 set;	      /* key of sw_backend_sets, and of its clients' affinity; never reused */
	__u16 chunks;	      /* of the set; 0: no endpoints */
	__u16 flags;	      /* SW_SERVICE_* */
	__u32 affinity_ticks; /* a client stays with its backend for so long after a connection; 0: no affinity */
	struct sw_addr source; /* the node's own in the backends' network (SourceVIP), for clients they cannot answer */
};

#define SW_SERVICE_REJECT 1	   /* without endpoints: TCP RST, port unreachable, ECONNREFUSED; else a silent drop */
#define SW_SERVICE_SOURCE_RANGES 2 /* only for clients in sw_source_ranges */
#define SW_SERVICE_BY_CLIENT 4	   /* the choice depends on client and VIP alone, not on ports */
#define SW_SERVICE_BY_PROTOCOL 8   /* as above, and on the protocol */
#define SW_SERVICE_DSR 16	   /* backends with a direct hop get the VIP's packets as they are, answer directly */
#define SW_SERVICE_PRESERVE 32	   /* PreserveDIP: local backends get them as they are, too */
#define SW_SERVICE_LOCAL 64	   /* its set is the one of the policy Local */

/* ---- sw_backend_sets: hash[SW_MAX_BACKEND_CHUNKS] --------------------------------------------------------------
 * Members that get new connections, SW_CHUNK_BACKENDS to a chunk; places may be empty (backend 0), order does not
 * matter. Rendezvous: the member with the highest weight of (connection, seed) gets the connection. The seed is made
 * from the backend's address, port and protocol, so that all nodes choose alike. Writer: daemon. Readers: first
 * packets, socket programs.
 */
struct sw_backend_chunk_key {
	__u32 set;
	__u32 chunk;
};

struct sw_backend_place {
	__u32 backend;
	__u32 seed;
};

struct sw_backend_chunk {
	struct sw_backend_place place[SW_CHUNK_BACKENDS];
};

/* ---- sw_backends: hash[SW_MAX_BACKENDS], key: id, never reused -------------------------------------------------
 * One for every (service port, endpoint). What it says of an id never changes but for flags, direct and scope (the route
 * to its node comes and goes): another address is another id. While it is here, connections to it go on; when it is gone,
 * they end. Writer: daemon. Readers: all programs.
 */
struct sw_backend {
	struct sw_addr address;
	__be16 port;
	__u8 family;
	__u8 flags;	/* SW_BACKEND_* */
	__u32 service;	/* the service's id */
	__u32 direct;	/* key of sw_nexthops: tunnel hop that names the endpoint by its MAC (DSR); 0: none */
	__u16 scope;	/* network of the address; SW_SCOPE_UPLINK: on the underlay, or beyond */
	__u16 reserved;
};

/* Why this backend: kind of the LB layer's trace step. */
#define SW_CHOICE_HASH 1
#define SW_CHOICE_AFFINITY 2
#define SW_CHOICE_KEPT 3   /* the flow has it already */
#define SW_CHOICE_DIRECT 4 /* another node has chosen this endpoint */

#define SW_BACKEND_DRAINING 1   /* keeps its connections, gets no new ones, not even by affinity */
#define SW_BACKEND_LOCAL_ONLY 2 /* so it is but for services whose set is the one of the policy Local */

/* ---- sw_affinity: LRU hash[SW_MAX_AFFINITY] --------------------------------------------------------------------
 * Which backend a client is to stay with. The host's own sockets are one client, with the zero address. Writers,
 * readers: first packets, socket programs.
 */
struct sw_affinity_key {
	struct sw_addr client;
	__u32 set;
	__u8 family;
	__u8 reserved[3];
};

struct sw_affinity {
	__u32 backend;
	__u32 seen_tick; /* of its last connection */
};

/* ---- sw_source_ranges: LPM trie[SW_MAX_SOURCE_RANGES] -> u32 (1) -----------------------------------------------
 * Clients that a service is for. prefix_bits counts service, family and reserved (64 bits) too. Writer: daemon.
 * Readers: first packets.
 */
struct sw_source_range_key {
	__u32 prefix_bits;
	__u32 service;
	__u8 family;
	__u8 reserved[3];
	struct sw_addr address;
};

/* ---- sw_direct: hash[SW_MAX_DIRECT] -> struct sw_portmap ---------------------------------------------------------
 * The receiving side of DSR and PreserveDIP: a decapsulated packet to an endpoint's own MAC and a VIP (zero: any
 * address of any node) is that endpoint's. The value's address is the endpoint's, or the VIP where it is preserved.
 * Writer: daemon. Reader: tunnel program.
 */
struct sw_direct_key {
	struct sw_addr address;
	__be16 port;
	__u8 protocol;
	__u8 family;
	__u8 mac[6];
	__u8 reserved[2];
};

/* ---- sw_service_counts: per-CPU hash[SW_MAX_SERVICE_COUNTS], key: service id -------------------------------------
 * Writers: first packets, socket programs. Reader: daemon, which removes those of services that are gone.
 */
struct sw_service_count {
	__u64 connections; /* new ones, balanced */
	__u64 refused;	   /* without endpoints, or outside the source ranges */
	__u64 ended;	   /* packets of connections whose backend was removed: each ends one */
};

/* ---- ACL tables ------------------------------------------------------------------------------------------------
 * One direction's rules of an endpoint, in the order in which they are asked: NetworkACLs, tiers and ACLs together. A
 * rule's place in that order is a bit. Each question (source, destination, protocol and destination port, source port)
 * is answered by one longest-prefix look-up with the vector of the rules that are content with it, and in a long table
 * by those that are content with any answer; the first bit that all answers have is the rule. So a first packet costs
 * the same look-ups whatever the number of rules.
 *
 * Tables, vectors, sets, classes and spaces are named by 64 bits of a hash of their content (sets and spaces: of their
 * ids): equal ones are shared. A change of rules is a new table, to which the port switches; but a long list of one
 * port's own is edited where it is when a few rules come, go or are replaced: new rules are written first, the entries
 * in sw_acl_rules before those that lead to them, then old ones are taken away, then the port gets its new generation.
 * So each connection is judged by the rules as they were or as they will be. Writer: daemon. Readers: first packets.
 */

/* sw_acl_prefixes: LPM trie[SW_MAX_ACL_PREFIXES] -> u64 (key of sw_acl_vectors). In tables of one word the shortest
 * prefix stands for the rules that take any address. prefix_bits counts table, family, side and reserved (96 bits) too.
 */
struct sw_acl_prefix_key {
	__u32 prefix_bits;
	__u32 table_low;  /* the table's number is split: the trie's data begins behind prefix_bits */
	__u32 table_high;
	__u8 family;
	__u8 side; /* SW_ACL_SOURCE, SW_ACL_DESTINATION; SW_ACL_MEMBER in sw_set_members */
	__u8 reserved[2];
	struct sw_addr address;
};

#define SW_ACL_SOURCE 0
#define SW_ACL_DESTINATION 1
#define SW_ACL_MEMBER 2

/* sw_acl_ports: LPM trie[SW_MAX_ACL_PORTS] -> u64 (key of sw_acl_vectors). prefix_bits counts table and side (72 bits)
 * too. Source ports are asked for protocol 0. Protocols without ports have port 0.
 */
struct sw_acl_port_key {
	__u32 prefix_bits;
	__u32 table_low;
	__u32 table_high;
	__u8 side;
	__u8 protocol;
	__be16 port;
};

/* sw_acl_vectors: hash[SW_MAX_ACL_VECTORS], key: hash of the content. Bit i of word w is rule 64 * w + i; bit w of the
 * summary says that word w is not 0.
 */
struct sw_acl_vector {
	__u64 summary;
	__u64 word[SW_ACL_WORDS];
};

/* sw_acl_any: hash[SW_MAX_ACL_ANY] -> struct sw_acl_vector: the rules that take any answer to a question. Tables of
 * more than one word have them here, and not in the vectors of all prefixes and ports, so that one such rule more is
 * one entry. Questions for addresses have a family, those for ports a protocol (0: for source ports).
 */
struct sw_acl_any_key {
	__u64 table;
	__u8 side; /* SW_ACL_SOURCE, SW_ACL_DESTINATION */
	__u8 family;
	__u8 protocol;
	__u8 reserved[5];
};

/* sw_acl_sets: hash[SW_MAX_ACL_SETS] -> u64 (key of sw_acl_vectors). The rules that name a set on one side. */
struct sw_acl_set_key {
	__u64 table;
	__u64 set;
	__u32 side;
	__u32 reserved;
};

/* sw_acl_rules: hash[SW_MAX_ACL_RULES]. */
struct sw_acl_rule_key {
	__u64 table;
	__u32 index;
	__u32 reserved;
};

struct sw_acl_rule {
	__u32 rule;	/* what drops and traces name: SW_RULE_*; 0 = what holds when no rule matches */
	__u16 priority;
	__u16 next;	/* where the next stage starts, for SW_ACL_PASS */
	__u8 action;	/* SW_ACL_BLOCK, SW_ACL_ALLOW, SW_ACL_PASS */
	__u8 reserved[3];
};

#define SW_ACL_BLOCK 0
#define SW_ACL_ALLOW 1
#define SW_ACL_PASS 2 /* what follows in the next stage decides */

#define SW_ACL_BY_SOURCE 1
#define SW_ACL_BY_SOURCE_SETS 2
#define SW_ACL_BY_DESTINATION 4
#define SW_ACL_BY_DESTINATION_SETS 8
#define SW_ACL_BY_SOURCE_PORT 16
/* The bits above them say how often the table has been edited, 1 to 7 in turns: for the daemon, which sees by them that
 * a table is another than its name says.
 */
#define SW_ACL_EDITION_SHIFT 5
#define SW_ACL_EDITIONS 7

/* A rule's name: the number of the policy in its object's list, which it keeps; in a tier, the rule's place, too. */
#define SW_RULE_POLICY_MASK 0xffff
#define SW_RULE_TIER_SHIFT 16
#define SW_RULE_NETWORK 0x40000000 /* the policy is the network's */

/* sw_rule_counts: per-CPU hash[SW_MAX_RULE_COUNTS] -> u64: first packets (and re-decisions) that a rule has judged, of
 * ACLs and of what stands beside them in a port's layers. Writers: first packets. Reader: daemon.
 */
struct sw_rule_count_key {
	__u32 port;
	__u32 rule;
	__u8 side; /* SW_ACL_IN, SW_ACL_OUT; SW_COUNTED_* */
	__u8 reserved[3];
};

#define SW_COUNTED_NAT 2     /* rule: that of sw_nat, where it has translated */
#define SW_COUNTED_PORTMAP 3 /* rule: family << 24 | protocol << 16 | the port that was asked for */
#define SW_COUNTED_ROUTE 8   /* and the route's kind above it; rule: its next hop. Only where flows are counted */

/* ---- IP sets -----------------------------------------------------------------------------------------------------
 * An address has a class: the combination of flat sets that it is in. Members are stored once, whoever names their
 * sets. sw_set_members: LPM trie[SW_MAX_SET_MEMBERS], key: struct sw_acl_prefix_key with the space for the table,
 * -> u64 (class). A prefix's class counts the sets of the prefixes around it too. Writer: daemon. Readers: first packets.
 *
 * sw_set_classes: hash[SW_MAX_SET_CLASSES]: the sets of a class, nested ones too, SW_CLASS_SETS to a chunk, 0 = end.
 */
struct sw_set_class_key {
	__u64 class_number;
	__u32 chunk;
	__u32 reserved;
};

struct sw_set_class {
	__u64 set[SW_CLASS_SETS];
};

/* sw_acl_spaces: hash[SW_MAX_SET_SPACES], key: u64. The sets of a network; its generation moves when a member does, so
 * that flows which rules with sets have allowed are judged again. Writer: daemon, after the members.
 */
struct sw_acl_space {
	__u32 generation;
	__u32 reserved;
	__u64 content; /* hash of all members */
};

/* What a flow keeps of a port's generation and that of its sets, so that neither can move back to an old pair. */
#define SW_SPACE_FACTOR 0x61c88647

#define SW_PROTOCOL_ANY 256

/* ---- sw_nat: LPM trie[SW_MAX_NAT_PREFIXES] -------------------------------------------------------------------
 * OutBoundNAT of an endpoint by destination; endpoints with the same policies share a set. The policies'
 * exceptions and destinations are compiled into prefixes that already hold the answer. prefix_bits counts set,
 * family and reserved (64 bits) too. Writer: daemon. Readers: first packets.
 */
struct sw_nat_key {
	__u32 prefix_bits;
	__u32 set;
	__u8 family;
	__u8 reserved[3];
	struct sw_addr address;
};

struct sw_nat {
	__u8 action; /* SW_NAT_NONE or SW_NAT_SNAT */
	__u8 flags;  /* SW_NAT_EXPLICIT */
	__u16 ports; /* how many of the pool's an endpoint may use, 0 = all */
	__u32 rule;
	struct sw_addr address; /* VirtualIP, or the node's address */
};

#define SW_NAT_NONE 0
#define SW_NAT_SNAT 1
#define SW_NAT_EXPLICIT 1 /* named in Destinations: applies inside the virtual network too */

/* ---- sw_vnis: hash[SW_MAX_VNIS], key: VNI, or SW_VLAN and a VLAN's id ------------------------------------------
 * Whose packets come through the tunnel under that number, or by the uplink with that tag. Writer: daemon. Reader: what
 * arrives there.
 */
#define SW_VLAN 0x1000000      /* above all VNIs */
#define SW_VLAN_NODE 0x2000000 /* and the id: that of a device of the node's own */
#define SW_VLAN_ID 0xfff       /* the id in a tag. With SW_VLAN_NODE (it is nobody's): some network here is a VLAN */

struct sw_vni {
	__u16 scope;
	__u16 reserved;
};

/* ---- sw_flows: hash[SW_MAX_FLOWS], preallocated --------------------------------------------------------------
 * Unified flows. The two ends are sorted, so that both directions of a connection meet in one entry; a connection
 * whose tuple or scope differs between its two sides (NAT, uplink) has a pair, each entry serving the packets that
 * arrive under its key. ICMP echo: the identifier is the requester's port, the other port is zero. Where a client that
 * has called a service calls the backend itself, from the same port, its key is that pair's second one: the connection
 * stands aside, in a pair of its own whose first key has SW_SCOPE_ASIDE, and the backend sees another port.
 * Writers: all programs, daemon (removal only). Readers: all programs, ageing timer.
 */
struct sw_flow_key {
	struct sw_addr address[2]; /* sorted by (address, port) as byte strings */
	__be16 port[2];
	__u16 scope;
	__u8 family;
	__u8 protocol;
};

enum sw_fate {
	SW_TO_NOWHERE = 0, /* this entry does not serve that direction */
	SW_TO_PORT = 1,	   /* target: key of sw_ports */
	SW_TO_UPLINK = 2,  /* target: key of sw_nexthops */
	SW_TO_TUNNEL = 3,  /* target: key of sw_nexthops */
	SW_TO_HOST = 4,	   /* the node's own stack; target: 0, or SW_LOOPBACK: by lo */
	SW_TO_INGRESS = 5, /* the uplink, as if it had come by it: direct answers to clients that are here */
};

/* The composed transposition of one direction: what happens to a packet and where it goes. */
struct sw_action {
	__u8 fate;
	__u8 flags; /* SW_REWRITE_*, SW_DECREMENT */
	__be16 source_port;
	__be16 destination_port;
	__u16 reserved;
	__u32 target;
	struct sw_addr source;
	struct sw_addr destination;
};

#define SW_LOOPBACK 1 /* lo, in every network namespace */

#define SW_REWRITE_SOURCE 1	 /* address and port */
#define SW_REWRITE_DESTINATION 2 /* address and port */
#define SW_DECREMENT 4

struct sw_flow {
	struct sw_action action[2]; /* [0] packets from address[0] to address[1], [1] the others */
	__u32 port[2];		    /* [0] initiator's port, [1] target's; 0 = not a local endpoint */
	__u32 generation[2];	    /* of those ports when decided */
	__u32 rule[2];		    /* ACL rules that allowed it: [0] out, [1] in; 0 = none needed */
	__u32 seen_tick;
	__u32 slot;	  /* index in sw_flow_slots */
	__u16 peer_scope; /* scope of the other entry of the pair */
	__u8 flags;	  /* SW_FLOW_* */
	__u8 tcp[2];	  /* SW_TCP_* seen from [0] the initiator, [1] the target */
	__u8 arrival;	  /* enum sw_arrival of the first packet */
	__u8 reserved[2];
	__u32 backend;	  /* key of sw_backends: gone, and the flow is stale; 0 = no service */
	__u32 service;	  /* its service's id, for counters and tools */
};

#define SW_FLOW_INITIATOR 1 /* direction (0 or 1) that the initiator's packets have under this key */
#define SW_FLOW_PAIR 2	    /* has a second entry */
#define SW_FLOW_SECOND 4    /* is that second entry: serves only the target's packets */
#define SW_FLOW_REPLIED 8   /* the target has answered */
#define SW_FLOW_HOST 16	    /* a host socket on the uplink that uses a port of the NAT pool */
#define SW_FLOW_DIRECT 32   /* of a service, but the VIP stays on its packets: DSR, PreserveDIP */
#define SW_FLOW_STREAM 64   /* has gone on in a later tick than the one of its first answer */
#define SW_FLOW_DENIED 128  /* TCP: an ACL has come to deny it, packets that came since were dropped */

#define SW_TCP_SYN 1
#define SW_TCP_FIN 2
#define SW_TCP_RST 4
#define SW_TCP_DATA 8 /* anything without SYN */

/* ---- sw_flow_slots: array[power of two >= 2 * flows] ---------------------------------------------------------
 * Where flows are found by position: ageing and recycling look at a bounded slice. The word of scope, family and
 * protocol is 0 when the slot is free, family 0xff while a flow is being inserted.
 */
/* value: struct sw_flow_key */

/* ---- sw_flow_counts: array[2 * slots], or [1]: not counted ----------------------------------------------------
 * What has arrived of a flow since it has its slot: packets of direction 0 at the slot's index, those of direction 1
 * behind all of these, so that the two do not share a cache line. Writers: all programs. Reader: daemon.
 */
struct sw_flow_count {
	__u64 packets; /* as they are on the wire, not as offloads have joined them */
	__u64 bytes;   /* of IP packets, headers included */
};

/* ---- sw_fragments: LRU hash[SW_MAX_FRAGMENTS] ----------------------------------------------------------------
 * Ports of datagrams whose first fragment has passed. Writers, readers: all programs.
 */
struct sw_fragment_key {
	struct sw_addr source;
	struct sw_addr destination;
	__u32 id;
	__u16 scope;
	__u8 family;
	__u8 protocol;
};

struct sw_fragment {
	__be16 source_port;
	__be16 destination_port;
	__u32 seen_tick;
};

/* ---- sw_drops: per-CPU hash[SW_MAX_DROP_KINDS] -> packets (u64) ----------------------------------------------
 * Writers: all programs. Reader: daemon.
 */
struct sw_drop_key {
	__u32 port; /* ifindex of the port charged; the arrival device when no port is known */
	__u32 rule;
	__u8 layer;
	__u8 reason;
	__u8 arrival;
	__u8 reserved;
};

/* ---- sw_counters: per-CPU array[SW_COUNTER_MAX] of u64 ---------------------------------------------------------
 */
enum sw_counter {
	SW_COUNTER_FLOW_INSERTS = 0,
	SW_COUNTER_FLOW_ADOPTED = 1,   /* another CPU had inserted the same flow first */
	SW_COUNTER_FLOW_RECYCLED = 2,  /* closing or half-open flows removed because the table was full */
	SW_COUNTER_FLOW_AGED = 3,
	SW_COUNTER_FLOW_REDECIDED = 4, /* stale flows judged again */
	SW_COUNTER_FIRST_PACKETS = 6,  /* 5 is free */
	SW_COUNTER_STATELESS = 7,      /* first packets that needed no flow */
	SW_COUNTER_NAT_RETRIES = 8,    /* SNAT ports found taken */
	SW_COUNTER_AGEING_TICKS = 9,
	SW_COUNTER_ANSWERED_ARP = 10,  /* ARP and ND answered from the map */
	SW_COUNTER_TOO_BIG_SENT = 11,
	SW_COUNTER_TIME_EXCEEDED_SENT = 12,
	SW_COUNTER_HOST_FLOWS = 13,    /* host sockets seen with a port of the NAT pool */
	SW_COUNTER_FLOWS_REMOVED = 14, /* by recycling, ageing, redecision: with inserts, gives the table's fill */
	SW_COUNTER_LB_CONNECTIONS = 15, /* balanced to a backend */
	SW_COUNTER_LB_REFUSED = 16,    /* answered with RST or port unreachable */
	SW_COUNTER_LB_ENDED = 17,      /* packets of connections whose backend was removed */
	SW_COUNTER_DROPS_UNNAMED = 18, /* of kinds that sw_drops had no room for */
	SW_COUNTER_MAX = 24,
};

/* ---- sw_buckets: hash[SW_MAX_PORTS], key: ifindex ------------------------------------------------------------
 * Token bucket of a cap from the endpoint. Writer: daemon (rate, burst), pod program (full_ns).
 */
struct sw_bucket {
	__u64 rate_bytes_per_s;
	__u64 burst_bytes;
	__u64 full_ns; /* when the bucket will be full again if nothing is sent; in the past: it is */
};

/* ---- sw_sockets: LRU hash[SW_MAX_SOCKETS] --------------------------------------------------------------------
 * What a host socket asked for, before it was sent to a host port's endpoint or a service's backend, under that
 * address; and, for datagrams to a service, which backend it was sent to, under the VIP. Writers, readers: socket
 * programs.
 */
struct sw_socket_key {
	__u64 cookie;
	struct sw_addr address;
	__be16 port;
	__u8 family;
	__u8 protocol;
	__u32 reserved;
};

struct sw_socket {
	struct sw_addr address; /* as the application named it */
	__be16 port;
	__u8 family; /* of address: 4 for an IPv4-mapped one of an IPv6 socket */
	__u8 reserved;
	__u32 backend; /* 0 = a host port's endpoint */
};

/* ---- sw_events: ring buffer ----------------------------------------------------------------------------------
 * Drops, one record each, while SW_CONFIG_EVENTS is set.
 */
struct sw_drop_event {
	__u64 time_ns;
	struct sw_drop_key drop;
	struct sw_addr source;
	struct sw_addr destination;
	__be16 source_port;
	__be16 destination_port;
	__u16 scope;
	__u8 family;
	__u8 protocol;
	__u32 reserved;
};

/* ---- trace (only in the object built with TRACE=1) -----------------------------------------------------------
 * sw_trace_input: array[1]. Writer: daemon. Says where the traced packet arrives.
 */
struct sw_trace_input {
	__u32 ifindex; /* of the pod's host end for SW_FROM_POD */
	__u32 vni; /* SW_FROM_UPLINK: SW_VLAN and the id in the tag, 0 = no tag */
	struct sw_addr tunnel_source;
	__u8 arrival;
	__u8 family; /* of tunnel_source */
	__u8 reserved[2];
};

/* ---- sw_cursors: array[1] -----------------------------------------------------------------------------------
 * Writers: all programs (all but age), ageing timer (age).
 */
struct sw_cursors {
	__u64 recycle;
	__u64 age;
	__u64 host_replies; /* not 0: the node itself serves outside clients of a service, its packets may be replies */
	__u64 asides;	    /* not 0: there are, or have been, flows that stand aside */
};

/* sw_trace_output: array[1]. Writer: traced program. One step a layer, in order. */
#define SW_TRACE_STEPS 24

struct sw_trace_step {
	__u8 layer;
	__u8 verdict; /* SW_STEP_* */
	__u8 reason;
	__u8 kind; /* route kind, fate or action, by layer */
	__u32 rule;
	__u32 target; /* port or nexthop */
	__be16 source_port;
	__be16 destination_port;
	struct sw_addr source; /* the tuple after this layer */
	struct sw_addr destination;
};

#define SW_STEP_PASS 1
#define SW_STEP_DROP 2
#define SW_STEP_REWRITE 3
#define SW_STEP_FINAL 4

struct sw_trace_output {
	__u32 count;
	__u8 fate; /* enum sw_fate; SW_TO_NOWHERE with drop_reason set = dropped */
	__u8 drop_layer;
	__u8 drop_reason;
	__u8 flow_hit;
	struct sw_trace_step step[SW_TRACE_STEPS];
};

#endif /* SAMEWIRE_LAYOUT_H */
