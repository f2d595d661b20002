/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * choose.h - services and the choice of a backend: pure look-ups, for packets and for host sockets.
 *
 * Rendezvous hashing: every member of a set is weighed against the connection, the heaviest gets it. All nodes choose
 * alike, a member that goes takes only its own share with it, and one that comes takes its share evenly from all.
 */
#ifndef SAMEWIRE_CHOOSE_H
#define SAMEWIRE_CHOOSE_H

#include "account.h"

struct sw_choice {
	__u32 set;
	__u32 hash;    /* of the connection, or of the client */
	__u32 backend; /* the best so far; 0 = none */
	__u64 score;   /* its weight, then its seed: 63 bits */
};

SW_INLINE __u32 sw_hash_word(__u32 hash, __u32 word)
{
	hash = (hash ^ word) * 0x9e3779b1;
	return hash ^ hash >> 15;
}

SW_INLINE __u32 sw_hash_ends(const struct sw_addr *source, const struct sw_addr *destination, __u32 ports)
{
	const __be32 *s = (const __be32 *)source->b;
	const __be32 *d = (const __be32 *)destination->b;
	__u32 hash = 0;
	int i;

	for (i = 0; i < 4; i++)
		hash = sw_hash_word(hash, bpf_ntohl(s[i]));
	for (i = 0; i < 4; i++)
		hash = sw_hash_word(hash, bpf_ntohl(d[i]));
	return sw_hash_word(hash, ports);
}

/* Spread by the connection, the same in the simulator: of backends, and of where the search for a SNAT port begins. */
SW_INLINE __u32 sw_hash_tuple(const struct sw_tuple *t)
{
	return sw_hash_ends(&t->source, &t->destination,
			    (__u32)bpf_ntohs(t->source_port) << 16 | bpf_ntohs(t->destination_port));
}

/* What the choice depends on, by the service's distribution type. */
SW_INLINE __u32 sw_hash_client(const struct sw_addr *client, const struct sw_addr *vip, __u16 flags, __u8 protocol)
{
	return sw_hash_ends(client, vip, flags & SW_SERVICE_BY_PROTOCOL ? protocol : 0);
}

SW_INLINE struct sw_backend *sw_find_backend(__u32 id)
{
	return bpf_map_lookup_elem(&sw_backends, &id);
}

/* The service behind a VIP, asked by arrivals of a scope; zero address: NodePorts. */
SW_INLINE struct sw_service *sw_find_service(struct sw_service_key *key, __u16 scope)
{
	struct sw_service *service;

	key->scope = scope;
	service = bpf_map_lookup_elem(&sw_services, key);
	if (service || scope == SW_SCOPE_OUTSIDE)
		return service;
	key->scope = SW_SCOPE_ANY;
	return bpf_map_lookup_elem(&sw_services, key);
}

SW_INLINE __u32 sw_weight(__u32 hash, __u32 seed)
{
	hash ^= seed;
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* All ones where a < b, else nothing; both below 2^63. */
SW_INLINE __u64 sw_mask_below(__u64 a, __u64 b)
{
	__u64 mask = (__s64)(a - b) >> 63;

	asm volatile("" : "+r"(mask)); /* stays arithmetic */
	return mask;
}

/*
 * Without a branch on what is weighed: the verifier would go through every order in which 16 members can beat one
 * another. An empty place has the score 0, which beats nothing. Global: verified once, and for any best so far; inside
 * the loop over chunks it would be verified until nothing new is known of the best.
 */
__noinline int sw_weigh(const struct sw_backend_chunk *chunk, struct sw_choice *best)
{
	int i;

	if (!chunk || !best)
		return 0;
	for (i = 0; i < SW_CHUNK_BACKENDS; i++) {
		__u64 backend = chunk->place[i].backend;
		__u32 seed = chunk->place[i].seed;
		__u64 score = ((__u64)sw_weight(best->hash, seed) << 31 | seed >> 1) & sw_mask_below(0, backend);
		__u64 better = sw_mask_below(best->score, score | (1 & sw_mask_below(0, backend)));

		best->backend = (best->backend & ~better) | (backend & better);
		best->score = (best->score & ~better) | (score & better);
	}
	return 0;
}

static long sw_weigh_chunk(__u32 index, void *context)
{
	struct sw_choice *best = context;
	struct sw_backend_chunk_key key = { .set = best->set, .chunk = index };

	return sw_weigh(bpf_map_lookup_elem(&sw_backend_sets, &key), best);
}

/* What is known of a client, read and replaced in one go: several CPUs may have connections of it at once. */
union sw_affinity_word {
	struct sw_affinity value;
	__u64 word; /* 0: nothing */
};

/* The backend that a client is to stay with; 0: none, not for so long, or it takes no new connections of the service. */
SW_INLINE __u32 sw_recall(const struct sw_service *service, struct sw_affinity *found, __u32 now, __u64 *word)
{
	union sw_affinity_word seen = {};
	struct sw_backend *backend;
	__u32 idle;

	if (found)
		seen.word = *(volatile __u64 *)found;
	*word = seen.word;
	idle = now - seen.value.seen_tick; /* or less than none: another CPU has seen it after `now` was read */
	if (!seen.word || ((__s32)idle > 0 && idle > service->affinity_ticks))
		return 0;
	backend = sw_find_backend(seen.value.backend);
	if (!backend || backend->flags & SW_BACKEND_DRAINING)
		return 0;
	if (backend->flags & SW_BACKEND_LOCAL_ONLY && !(service->flags & SW_SERVICE_LOCAL))
		return 0;
#ifndef TRACE
	found->seen_tick = now;
#endif
	return seen.value.backend;
}

#ifndef TRACE
/* Notes where a client is to stay, unless another CPU has just done so. Returns the backend that it then is. */
static __noinline __u32 sw_remember(const struct sw_service *service, const struct sw_affinity_key *key, __u32 backend,
				    __u32 now)
{
	union sw_affinity_word chosen = { .value = { .backend = backend, .seen_tick = now } };
	struct sw_affinity *found;
	__u64 word;
	__u32 kept;

	if (!bpf_map_update_elem(&sw_affinity, key, &chosen, BPF_NOEXIST))
		return backend;
	found = bpf_map_lookup_elem(&sw_affinity, key);
	kept = sw_recall(service, found, now, &word);
	if (kept || !found || __sync_val_compare_and_swap((__u64 *)found, word, chosen.word) == word)
		return kept ? kept : backend;
	kept = sw_recall(service, found, now, &word);
	return kept ? kept : backend;
}
#endif

/*
 * Chooses a backend of a service for a client (the zero address: the node itself) by the hash of the connection, or of
 * the client. Returns the backend's id, 0 when there is none; how: SW_CHOICE_*. Global: verified once.
 */
__noinline __u32 sw_choose(const struct sw_service *service, const struct sw_addr *client, __u32 family, __u32 hash,
			   __u32 *how)
{
	struct sw_affinity_key key = { .family = family };
	struct sw_choice choice = { .hash = hash };
	__u32 now = sw_now_tick();

	if (!service || !client || !how || !service->chunks)
		return 0;
	*how = SW_CHOICE_HASH;
	key.set = service->set;
	if (service->affinity_ticks) {
		__u64 word;
		__u32 kept;

		sw_copy_address(&key.client, client);
		kept = sw_recall(service, bpf_map_lookup_elem(&sw_affinity, &key), now, &word);
		if (kept) {
			*how = SW_CHOICE_AFFINITY;
			return kept;
		}
	}
	choice.set = service->set;
	bpf_loop(service->chunks, sw_weigh_chunk, &choice, 0);
#ifndef TRACE
	if (service->affinity_ticks && choice.backend)
		return sw_remember(service, &key, choice.backend, now);
#endif
	return choice.backend;
}

#define SW_COUNT_CONNECTION 0
#define SW_COUNT_REFUSED 1
#define SW_COUNT_ENDED 2

/* Global: verified once. */
__noinline int sw_count_service(__u32 service, __u32 which)
{
#ifndef TRACE
	struct sw_service_count *count = bpf_map_lookup_elem(&sw_service_counts, &service);

	if (!count) {
		struct sw_service_count zero = {};

		bpf_map_update_elem(&sw_service_counts, &service, &zero, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&sw_service_counts, &service);
	}
	if (!count)
		return 0;
	if (which == SW_COUNT_CONNECTION)
		count->connections++;
	else if (which == SW_COUNT_REFUSED)
		count->refused++;
	else
		count->ended++;
#endif
	return 0;
}

#endif /* SAMEWIRE_CHOOSE_H */
